"""Floor 6: the Ray Serve application, its web page and client."""

from cirray.core.environ import collect_seldom

collect_seldom()
