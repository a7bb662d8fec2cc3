"""What is on its way to the gateway: messages that wait to be written, and requests that wait for their answers."""
