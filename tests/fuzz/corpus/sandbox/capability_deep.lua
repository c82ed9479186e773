 local function f(n) local v = kv.get(n) local ok, w = pcall(f, n + 1) return v end table.sort({ 2, 1 }, kv.get) return f(1)
