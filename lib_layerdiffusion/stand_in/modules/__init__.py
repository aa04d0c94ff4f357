"""What extensions import as `modules` in a WebUI, as far as scripts need it; state of the page lies in `shared`."""
