"""Does it fit? The device, the memory plan, and the prediction of its peak."""
