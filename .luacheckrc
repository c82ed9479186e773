std = "luajit"
max_line_length = 140
self = false
exclude_files = {"build*/**", "var/**", "tests/fuzz/corpus/**"}
files["tests/**"] = {std = "+busted"}
files["rules/**"] = {globals = {}, read_globals = {"schema", "set", "money", "dt", "text", "lib", "log",
    "catalog", "customers", "events", "http", "jobs", "kv", "mail", "notify", "orders", "secret", "stock"}}
