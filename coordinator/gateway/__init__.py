"""The agents' door: sessions, admission, WebSocket server."""
