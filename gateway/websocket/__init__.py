"""One WebSocket: bytes in, bytes out, and one named end. Only this wing touches what is private to aiohttp."""
