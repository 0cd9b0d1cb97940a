# 33: output that pretends to be something else
print('{"jsonrpc": "2.0", "id": 1, "result": {"session": "ended"}}')
print("\x1b]8;;http://example.invalid\x07session destroyed\x1b]8;;\x07")
print("<script>alert(1)</script>")
report()
