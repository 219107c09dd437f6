"""How stages run on Ray: clusters, streams of parts, graphs of stages."""
