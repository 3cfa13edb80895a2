"""What is composed before a note sounds: melody, arrangement, and a user's own melody."""
