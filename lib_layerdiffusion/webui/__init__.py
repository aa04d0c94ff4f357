"""The extension inside a WebUI; gradio and the WebUI's `modules` are imported only in this package."""
