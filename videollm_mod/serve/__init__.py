"""The server: live pictures in, narration and answers out, over WebSocket, HTTP and a page for the browser.

protocol.py what is said on the wire · app.py the routes · hub.py the live streams · worker.py the thread that owns the
model · store.py what was said, on disk · sources.py cameras that nobody looks at · client.py the Python client.
"""
