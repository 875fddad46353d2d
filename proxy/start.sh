#!/bin/sh
# Fills in nginx.conf from the environment, checks the result and becomes nginx. Arguments are passed on to nginx.
# RESNET_ variables that are the service's have the service's defaults; docs/deployment.md says what the others mean.
# The PROXY_ ones are the image's inside, and there for the tests.
set -eu

here=$(dirname "$0")
run=${PROXY_RUN:-/tmp}
tls=${PROXY_TLS:-/etc/nginx/tls}

say() { echo "proxy: $*" >&2; }
fail() { say "$*"; exit 1; }

# value NAME DEFAULT PATTERN MEANING: the variable, which must match the pattern whole.
value() {
    eval "given=\${$1:-$2}"
    one_line=$(printf '%s' "$given" | tr '\n' '?')
    printf '%s\n' "$one_line" | grep -Eqx "$3" || fail "$1 cannot be '$given': it must be $4."
    printf '%s' "$given"
}
milliseconds() { awk "BEGIN { printf \"%dms\", $1 < 1 ? 1 : $1 }"; }
with_commas() { printf '%s' "$1" | sed -e ':again' -e 's/\([0-9]\)\([0-9]\{3\}\)\(,\|$\)/\1,\2\3/' -e 't again'; }

whole='[1-9][0-9]{0,11}'
number='[0-9]{1,9}(\.[0-9]{1,9})?'
max_body=$(value RESNET_MAX_BODY_BYTES 10000000 "$whole" "a whole number of bytes")
max_batch_body=$(value RESNET_MAX_BATCH_BODY_BYTES 64000000 "$whole" "a whole number of bytes")
request_timeout=$(value RESNET_REQUEST_TIMEOUT_MS 30000 "$whole" "a whole number of milliseconds")
header_timeout=$(value RESNET_HEADER_TIMEOUT_SECONDS 5 "$number" "a number of seconds")
body_timeout=$(value RESNET_BODY_TIMEOUT_SECONDS 10 "$number" "a number of seconds")
root_path=$(value RESNET_ROOT_PATH "" '(/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-])?' "a path such as /classify")
connections=$(value RESNET_PROXY_CONNECTIONS 64 '[1-9][0-9]{0,4}' "a whole number of requests")
http=$(value RESNET_PROXY_HTTP redirect 'redirect|serve' "redirect or serve")
tls_port=$(value RESNET_PUBLISH_TLS 8443 '([^ ]*:)?[0-9]{1,5}' "a port, or an address and a port")
listen=$(value PROXY_LISTEN 8080 '[0-9.:]+' "an address nginx can listen on")
tls_listen=$(value PROXY_TLS_LISTEN 8443 '[0-9.:]+' "an address nginx can listen on")
probe=$(value PROXY_PROBE 127.0.0.1:8081 '[0-9.:]+' "an address nginx can listen on")
service=$(value PROXY_SERVICE resnet-serve:8000 '[A-Za-z0-9.-]+:[0-9]+' "a name and a port")

tls_port=${tls_port##*:}
[ "$tls_port" = 443 ] && tls_port= || tls_port=:$tls_port

# nginx asks name servers itself and has to be told which; Docker's own answers at 127.0.0.11.
servers=$(awk '$1 == "nameserver" && $2 ~ /^[0-9a-fA-F.:]+$/ { printf "%s ", $2 ~ /:/ ? "[" $2 "]" : $2 }' /etc/resolv.conf)
resolver=${servers:+resolver ${servers}valid=2s ipv6=off;}

fill_in() {
    sed -e "s|@RUN@|$run|g" -e "s|@TLS@|$tls|g" \
        -e "s|@LISTEN@|$listen|g" -e "s|@TLS_LISTEN@|$tls_listen|g" -e "s|@PROBE@|$probe|g" \
        -e "s|@SERVICE@|$service|g" -e "s|@RESOLVER@|$resolver|g" \
        -e "s|@MAX_BODY@|$max_body|g" -e "s|@MAX_BODY_TEXT@|$(with_commas "$max_body")|g" \
        -e "s|@MAX_BATCH_BODY@|$max_batch_body|g" -e "s|@MAX_BATCH_BODY_TEXT@|$(with_commas "$max_batch_body")|g" \
        -e "s|@HEADER_TIMEOUT@|$(milliseconds "$header_timeout * 1000")|g" \
        -e "s|@BODY_TIMEOUT@|$(milliseconds "$body_timeout * 1000")|g" \
        -e "s|@READ_TIMEOUT@|$(milliseconds "$request_timeout + 5000")|g" \
        -e "s|@CONNECTIONS@|$connections|g" -e "s|@ROOT_PATH@|$root_path|g" \
        -e "s|@HTTP@|$http|g" -e "s|@TLS_PUBLIC_PORT@|$tls_port|g" "$here/$1" >"$run/$1"
}

if [ -e "$tls/tls.crt" ] && [ -e "$tls/tls.key" ]; then
    for file in "$tls/tls.crt" "$tls/tls.key"; do
        [ -r "$file" ] || fail "$file cannot be read by user $(id -u): chown it to that number on the host."
    done
    fill_in tls.conf
    say "HTTPS with the certificate in $tls; plain HTTP: $http."
elif [ -e "$tls/tls.crt" ] || [ -e "$tls/tls.key" ]; then
    fail "$tls has one of tls.crt and tls.key; HTTPS needs both."
else
    http=serve
    : >"$run/tls.conf"
    say "No certificate in $tls: plain HTTP only, and anyone on the way can read and change what is sent."
fi
fill_in nginx.conf

nginx -t -q -e stderr -c "$run/nginx.conf" "$@"
exec nginx -e stderr -c "$run/nginx.conf" "$@"
