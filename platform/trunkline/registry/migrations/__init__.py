"""The registry's schema, revision by revision; ``versions`` holds a file each."""
