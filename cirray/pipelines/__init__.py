"""Floor 6: every stage as an artifact-making function; Ray Data, Train and Tune live here."""

from cirray.core.environ import collect_seldom, hush_ray

collect_seldom()
hush_ray()
