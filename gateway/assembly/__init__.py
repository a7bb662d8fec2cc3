"""What `app` and `server` are put together of, beside the wings."""
