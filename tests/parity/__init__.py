"""What the real frameworks compute, stored small, and the programs that compute it anew (`make parity`)."""
