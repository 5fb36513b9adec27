"""Shell scripts that a test adds to PATH in place of real programs."""

import os


def on_path(folder, monkeypatch):
    """A function write(name, script) that makes a program. PATH then has these and the system's own in /usr/bin."""
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def write(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write
