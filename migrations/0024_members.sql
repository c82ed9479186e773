-- Members of a tenant in the order in which their accounts were made: ids are uuid v7, so that the newest page is read from the index
-- alone and not from every member.

create index user_tenants_newest on user_tenants (tenant_key, user_id desc) include (status);
