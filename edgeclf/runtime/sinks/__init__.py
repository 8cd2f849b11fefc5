"""Where results go: files, the terminal, brokers, services and pins; none can slow the loop."""
