"""One job at a time, whether it comes from the page or the API."""

import threading

queue_lock = threading.Lock()
