"""Secret sharing between processes, on CrypTen's sharings and communicator, with a dealer and a planner of our own."""
