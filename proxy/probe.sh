#!/bin/bash
# Whether nginx answers. Not whether the service does: a proxy that says "unavailable" does its work.
exec 3<>/dev/tcp/127.0.0.1/8081 || exit 1
printf 'GET / HTTP/1.0\r\n\r\n' >&3
read -r -t 3 line <&3 && [[ $line == *" 204 "* ]]
