"""The page that shows a live stream: its files, and where three.js comes from."""

from pathlib import Path

PAGE = Path(__file__).parent
FILES = {  # name -> content type
    "index.html": "text/html",
    "style.css": "text/css",
    "page.js": "text/javascript",
    "scene.js": "text/javascript",
    "player.js": "text/javascript",
}
