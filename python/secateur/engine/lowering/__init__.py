"""From steps to programs: partition, fuse, write, assemble."""
