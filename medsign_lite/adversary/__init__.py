"""What an attacker would do to a watermark, beyond the six attacks of the paper."""
