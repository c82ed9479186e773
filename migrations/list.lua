-- The migrations in their order; each is migrations/<name>.sql. An applied file is never changed: its sum is recorded.
return {
    "0001_platform",
    "0002_tenant",
    "0003_history",
    "0004_catalogue",
    "0005_sales",
    "0006_marketing",
    "0007_tax_currency",
    "0008_payments",
    "0009_stock",
    "0010_shipping",
    "0011_audit_trim",
    "0012_sessions",
    "0013_notices",
    "0014_outbox_parking",
    "0015_lock_guards",
    "0016_webhooks",
}
