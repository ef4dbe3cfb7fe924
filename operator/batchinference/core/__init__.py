"""What should happen: pure functions of plain data and a time. No I/O, no asyncio, no logging."""
