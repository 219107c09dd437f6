"""Loss terms of retrieval training, one idea a file; `base.TERMS` names the files."""
