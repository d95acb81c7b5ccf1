"""Between the processes: AMP commands over a socketpair, and a scoreboard of shared 64-bit cells."""
