"""The way to the coordinator: bounded spool on disk, WebSocket client."""
