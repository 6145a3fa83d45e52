"""What is done to a cache: listed, cleared, verified; whoever has it open, mirror or command."""
