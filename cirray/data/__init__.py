"""Floor 3: benchmark records, readers, guarded images, transforms and the embedded world `shapes`."""
