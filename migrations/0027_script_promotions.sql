-- The promotions of rules are looked at by every quote, whatever their window: few rows, found without a walk over all promotions.
create index promotions_of_rules on promotions (tenant_key, id) where type = 'script';
