"""What the devices of all GPU vendors share: recorded lists, timelines, queues, buffers, close and fork."""
