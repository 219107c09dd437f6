"""Floor 6: the Ray Serve application, its web page and client."""

import gc

# as in `cirray.pipelines`
gc.set_threshold(max(20_000, gc.get_threshold()[0]))
