-- SQL of users, credentials, codes, sessions and memberships, which are platform tables. Roles: store_roles.lua; profiles:
-- store_profiles.lua.
local json = require("core.json")
local pg = require("core.pg")
local db = require("kasma.db")
local null = require("kasma.null")

local M = {}

local USER = [[u.id, u.email, u.username, u.display_name, u.user_type, u.status, u.is_locked, u.email_verified_at, u.last_login_at,
  u.suspended_until, u.deactivated_by, u.deleted_at, u.token_version, u.must_change_password, u.created_at, u.updated_at]]

-- Users --------------------------------------------------------------------------------------------------------------------

---@param id string
---@return table|nil
function M.user(id) return db.one(nil, "select " .. USER .. " from users u where u.id = $1", id) end

---@param ids string[]
---@return table[] id, display_name of those that are not deleted
function M.user_names(ids)
    return db.read(nil, "select id, display_name from users where id = any($1::uuid[]) and deleted_at is null order by id limit 1000",
        pg.array(ids))
end

---@param email string lower case
---@return table|nil
function M.user_by_email(email)
    return db.one(nil, "select " .. USER .. " from users u where lower(u.email) = $1 and u.deleted_at is null", email)
end

---@param name string lower case
---@return string|nil email of the account that signs in under this name
function M.email_of_username(name)
    local row = db.one(nil, "select email from users where username = $1 and deleted_at is null", name)
    return row and row.email
end

--- Which of these addresses have an account.
---@param emails string[] lower case
---@return table<string, boolean>
function M.known_emails(emails)
    local known = {}
    for _, row in ipairs(db.read(nil, "select lower(email) as email from users where lower(email) = any($1::text[]) and deleted_at is null",
        pg.array(emails))) do known[row.email] = true end
    return known
end

---@param email string
---@return table|nil user with password, credential_id, totp (true when a second factor is confirmed)
function M.login_user(email)
    return db.one(nil, "select " .. USER .. [[, c.id as credential_id, c.password,
        exists (select from user_credentials t where t.user_id = u.id and t.provider = 'totp' and t.confirmed_at is not null and
          t.is_active) as totp
      from users u left join user_credentials c on c.user_id = u.id and c.provider = 'local' and c.is_active
      where lower(u.email) = $1 and u.deleted_at is null]], email)
end

---@param u table id, email, display_name, user_type, status, now, verified (bool), must_change
---@return table statement
function M.insert_user(u)
    return { [[insert into users as u (id, email, display_name, user_type, status, email_verified_at, must_change_password, created_at,
      updated_at)
      values ($1, $2, $3, $4, $5, case when $6 then $7::timestamptz end, $8, $7::timestamptz, $7::timestamptz) returning ]] .. USER,
        u.id, u.email, u.display_name or null, u.user_type, u.status, u.verified == true, u.now, u.must_change == true }
end

--- Turns a pending user into an active one; raises KS409 when it is no longer pending.
---@param id string
---@param display_name string|nil
---@param now string
---@return table statement
function M.activate_user(id, display_name, now)
    return { [[with done as (update users set status = 'active', email_verified_at = $3::timestamptz,
        display_name = coalesce($2, display_name), updated_at = $3::timestamptz
        where id = $1 and status = 'pending' and deleted_at is null returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], id, display_name or null, now }
end

--- Makes an active account inactive by its own wish and voids its tokens; raises KS409 when it is not active any more.
---@param id string
---@param now string
---@return table statement
function M.deactivate_self(id, now)
    return { [[with done as (update users set status = 'inactive', deactivated_by = 'self', token_version = token_version + 1,
        updated_at = $2::timestamptz where id = $1 and status = 'active' and not is_locked and deleted_at is null returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], id, now }
end

--- Makes an account active again that was made inactive by its own wish; raises KS409 when it is another's doing, or changed since
--- `version` was read.
---@param id string
---@param version integer token_version
---@param now string
---@return table statement
function M.reactivate_self(id, version, now)
    return { [[with done as (update users set status = 'active', deactivated_by = null, updated_at = $3::timestamptz
        where id = $1 and status = 'inactive' and deactivated_by = 'self' and token_version = $2 and not is_locked
          and deleted_at is null returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], id, version, now }
end

--- Inactive by this is staff's doing, whoever did it before.
---@param id string
---@param c table status, is_locked, user_type, display_name, username, suspended_until, bump (token_version + 1)
---@param now string
---@return table statement
function M.update_user(id, c, now)
    return { "update users u set status = coalesce($2, u.status), is_locked = coalesce($3, u.is_locked), "
        .. "user_type = coalesce($4, u.user_type), "
        .. "display_name = coalesce($5, u.display_name), suspended_until = case when $2 is null "
        .. "then u.suspended_until else $6::timestamptz end, "
        .. "deactivated_by = case when $2 is null then u.deactivated_by when $2 = 'inactive' then 'staff' end, "
        .. "token_version = u.token_version + $7, username = coalesce($9, u.username), updated_at = $8::timestamptz "
        .. "where u.id = $1 and u.deleted_at is null returning " .. USER,
        id, c.status or null, c.is_locked == nil and null or c.is_locked, c.user_type or null, c.display_name or null,
        c.suspended_until or null, c.bump and 1 or 0, now, c.username or null }
end

--- Suspends an active account for a time and voids its tokens; raises KS409 when it is not active any more: what staff has said of it
--- meanwhile stands.
---@param id string
---@param until_at string
---@param now string
---@return table statement
function M.suspend_user(id, until_at, now)
    return { [[with done as (update users set status = 'suspended', suspended_until = $2::timestamptz, deactivated_by = null,
        token_version = token_version + 1, updated_at = $3::timestamptz
        where id = $1 and status = 'active' and deleted_at is null returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], id, until_at, now }
end

--- Ends a suspension; raises KS409 when the account is not suspended any more, or not until `over_at` at most.
---@param id string
---@param over_at string|nil nil: however long it would last
---@param now string
---@return table statement
function M.end_suspension(id, over_at, now)
    return { [[with done as (update users set status = 'active', suspended_until = null, deactivated_by = null,
        updated_at = $3::timestamptz
        where id = $1 and status = 'suspended' and ($2::timestamptz is null or suspended_until <= $2::timestamptz) and not is_locked
          and deleted_at is null returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], id, over_at or null, now }
end

--- Marks an account as deleted: its address is free at once, the row stays for orders and for thirty days of grace.
---@param id string
---@param now string
---@return table statement
function M.delete_user(id, now)
    return { "update users u set status = 'deleted', deactivated_by = null, deleted_at = $2::timestamptz, "
        .. "token_version = u.token_version + 1, updated_at = $2::timestamptz "
        .. "where u.id = $1 and u.deleted_at is null returning " .. USER, id, now }
end

--- Brings a deleted account back as inactive; raises KS409 when it is not deleted, erased already, or deleted before `since`.
---@param id string
---@param since string
---@param now string
---@return table statement
function M.restore_user(id, since, now)
    return { [[with done as (update users set status = 'inactive', deactivated_by = 'staff', deleted_at = null, is_locked = false,
          updated_at = $3::timestamptz
        where id = $1 and deleted_at > $2::timestamptz and purged_at is null returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], id, since, now }
end

--- Deleted accounts whose time is over and which are not erased yet, oldest first.
---@param before string
---@param limit integer
---@param after table|nil the last one of the page before
---@return table[] {id, email, deleted_at}
function M.users_to_purge(before, limit, after)
    return db.read(nil, [[select id, email, deleted_at from users where deleted_at is not null and purged_at is null
      and deleted_at <= $1::timestamptz and ($3::timestamptz is null or (deleted_at, id) > ($3::timestamptz, $4::uuid))
      order by deleted_at, id limit $2]], before, limit, after and after.deleted_at or null, after and after.id or null)
end

--- What is left of an erased account: an id that orders and the audit may name.
---@param id string
---@param now string
---@return table statement
function M.purge_user(id, now)
    return { [[update users set email = 'erased-' || id || '@erased.invalid', display_name = null, username = null,
      email_verified_at = null, last_login_at = null, purged_at = $2::timestamptz, updated_at = $2::timestamptz
      where id = $1 and deleted_at is not null]], id, now }
end

--- The rest that belongs to the account alone.
---@param id string
---@param email string
---@return table[] statements
function M.purge_traces(id, email)
    return {
        { "delete from user_credentials where user_id = $1", id },
        { "delete from auth_sessions where user_id = $1", id },
        { "delete from otps where user_id = $1 or identifier = $2", id, email },
        { "delete from user_contexts where user_id = $1", id },
    }
end

---@param id string
---@param now string
---@param before string only when the last sign-in is older
---@return table statement
function M.touch_login(id, now, before)
    return { [[update users set last_login_at = $2::timestamptz, updated_at = $2::timestamptz
      where id = $1 and (last_login_at is null or last_login_at < $3::timestamptz)]], id, now, before }
end

-- By id is by time: ids are uuid v7.
local ORDER = { ["-created_at"] = "m.user_id desc", created_at = "m.user_id", email = "m.email, m.user_id",
    ["-email"] = "m.email desc, m.user_id desc" }

-- Each filter is a condition on the membership, which has an index for it (migration 0029); of a role, on its holders. Only what is asked
-- for stands in the statement, so that the plan is made for it. Short texts are looked for where words begin, longer ones anywhere.
local FILTERS = {
    { "status", "m.user_status = $%d" },
    { "user_type", "m.user_type = $%d" },
    { "q", "m.search like kasma_fold($%d)" },
}
local HELD = [[ join user_roles x on x.tenant_key = m.tenant_key and x.user_id = m.user_id and x.tenant_key = $1
    and x.role_id = $%d
    and (x.expires_at is null or x.expires_at > $%d::timestamptz)]]
local SHORT = 3

--- The statements of a list of users: a page and the number of all. Public for the test that reads the plans.
---@param tenant string
---@param f table as list_users takes it, role_id in place of role_key
---@return table page, table count statements
function M.user_list(tenant, f)
    local values, from, where = { tenant }, "user_tenants m", "m.tenant_key = $1 and m.listed"
    local order = ORDER[f.sort] or ORDER["-created_at"]
    if f.role_id then
        values[2], values[3] = f.role_id, f.now
        from = from .. HELD:format(2, 3)
        -- A holder is a member by the same id: in the order of the holders the first page is the first of their index.
        order = order:gsub("m%.user_id", "x.user_id")
    end
    for _, filter in ipairs(FILTERS) do
        local value = f[filter[1]]
        if value and filter[1] == "q" then
            value = db.like(value)
            value = (#f.q < SHORT and "% " or "%") .. value .. "%"
        end
        if value then
            values[#values + 1] = value
            where = where .. " and " .. filter[2]:format(#values)
        end
    end
    local count = { "select count(*)::int as total from " .. from .. " where " .. where, unpack(values) }
    local at = #values
    values[at + 1], values[at + 2] = f.limit, f.offset
    local page = { ("select %s from %s join users u on u.id = m.user_id where %s order by %s limit $%d offset $%d")
        :format(USER, from, where, order, at + 1, at + 2), unpack(values) }
    return page, count
end

---@param tenant string
---@param f table q, status, user_type, role_key, sort, limit, offset, now (ISO 8601)
---@return table[] users of the tenant, newest first, integer total
function M.list_users(tenant, f)
    if f.role_key then
        -- Looked up first: how many hold the role decides the plan.
        local role = db.one(tenant, "select id from roles where tenant_key = $1 and role_key = $2", tenant, f.role_key)
        if not role then return {}, 0 end
        f.role_id = role.id
    end
    local page, count = M.user_list(tenant, f)
    local results = db.pipeline(tenant, { page, count })
    return results[1], results[2][1].total
end

---@param user_id string
---@param tenant string
---@return table|nil membership {status}
function M.membership(user_id, tenant)
    return db.one(nil, "select status from user_tenants where user_id = $1 and tenant_key = $2", user_id, tenant)
end

--- Whether an account is more than this tenant's: known to another tenant, or holder of a platform role.
---@param user_id string
---@param tenant string
---@return boolean
function M.belongs_elsewhere(user_id, tenant)
    return db.one(nil, [[select exists (select from user_tenants t where t.user_id = $1 and t.tenant_key <> $2 and t.status <> 'removed')
      or exists (select from platform_role_holders h where h.user_id = $1) as yes]], user_id, tenant).yes
end

---@param m table id, user_id, tenant_key, status, now
---@return table statement
function M.put_membership(m)
    return { [[insert into user_tenants as t (id, user_id, tenant_key, status, joined_at, created_at, updated_at)
      values ($1, $2, $3, $4, case when $4 = 'active' then $5::timestamptz end, $5::timestamptz, $5::timestamptz)
      on conflict (user_id, tenant_key) do update set status = excluded.status, joined_at = coalesce(t.joined_at, excluded.joined_at),
        updated_at = excluded.updated_at]], m.id, m.user_id, m.tenant_key, m.status, m.now }
end

--- The same for somebody who is no active member: KS409 when they are one.
---@param m {id: string, user_id: string, tenant_key: string, status: "active"|"invited", now: string}
---@return table statement
function M.enter_membership(m)
    local put = M.put_membership(m)
    put[1] = "with done as (" .. put[1] .. " where t.status <> 'active' returning 1) "
        .. "select kasma_must((select count(*) from done) = 1, 'KS409')"
    return put
end

--- Whether the tenant may know of the account: a membership of whatever state, or a sign-in on it.
---@param user_id string
---@param tenant string
---@return boolean
function M.known_to(user_id, tenant)
    return db.one(nil, [[select exists (select from user_tenants t where t.user_id = $1 and t.tenant_key = $2)
      or exists (select from auth_sessions s where s.user_id = $1 and s.tenant_key = $2) as yes]], user_id, tenant).yes
end

--- Whether another tenant or the platform ever had the account.
---@param user_id string
---@param tenant string
---@return boolean
function M.was_elsewhere(user_id, tenant)
    return db.one(nil, [[select exists (select from user_tenants t where t.user_id = $1 and t.tenant_key <> $2)
      or exists (select from platform_role_holders h where h.user_id = $1) as yes]], user_id, tenant).yes
end

--- Turns an invitation into a membership; without effect when there is none.
---@param user_id string
---@param tenant string
---@param now string
---@return table statement
function M.accept_invitation(user_id, tenant, now)
    return { [[update user_tenants set status = 'active', joined_at = $3::timestamptz, updated_at = $3::timestamptz
      where user_id = $1 and tenant_key = $2 and status = 'invited']], user_id, tenant, now }
end

--- Ends every membership and every role over all tenants.
---@param user_id string
---@param now string
---@return table[] statements
function M.end_memberships(user_id, now)
    return {
        { "update user_tenants set status = 'removed', updated_at = $2::timestamptz where user_id = $1 and status <> 'removed'", user_id,
            now },
        { "delete from platform_role_holders where user_id = $1", user_id },
    }
end

-- Keys that a user made, and those that were made by them: whoever has a key has the secrets of what it makes.
local MADE_BY = [[with recursive made as (select id from access_keys where created_by = $1
  union select k.id from access_keys k join made m on k.created_by = m.id) ]]

--- First in a transaction in which a key makes another: raises KS403 when the key has ended.
---@param id string
---@return table statement
function M.key_stands(id)
    return { [[with held as (select is_active and revoked_at is null as yes from access_keys where id = $1 for no key update)
      select kasma_must(coalesce((select yes from held), false), 'KS403')]], id }
end

--- Ends the access keys that a user made. Twice in a transaction, as secret_keys_by.
---@param user_id string
---@param now string
---@return table statement {owned_key}
function M.revoke_keys_of(user_id, now)
    return { MADE_BY .. [[update access_keys set revoked_at = $2::timestamptz, is_active = false, updated_at = $2::timestamptz
      where id in (select id from made) and revoked_at is null returning owned_key]], user_id, now }
end

--- First in a transaction that leaves something with a member: raises KS403 when the membership has ended. What ends it in the same moment
--- waits, or this waits for it. The platform's staff need no membership.
---@param user_id string
---@param tenant string
---@return table statement
function M.member_stands(user_id, tenant)
    return { [[with held as (select status from user_tenants where user_id = $1 and tenant_key = $2 for share)
      select kasma_must(coalesce((select status <> 'removed' from held), true)
        or exists (select from platform_role_holders where user_id = $1), 'KS403')]], user_id, tenant }
end

--- The secret keys of a tenant that a user made, by themselves or by a key of theirs, and that work, so that their secrets are known to
--- them; with `revoke` they end.
--- Run it again until it finds none: what a key of theirs was just making is there when that is done, which the first run waits for.
---@param tenant string
---@param user_id string
---@param now string
---@param revoke boolean
---@return table statement {id, owned_key, name, last4}
function M.secret_keys_by(tenant, user_id, now, revoke)
    local which = [[ where tenant_key = $2 and id in (select id from made) and key_type = 'secret' and is_active and revoked_at is null
      and (expires_at is null or expires_at > $3::timestamptz)]]
    if not revoke then
        return { MADE_BY .. "select id, owned_key, name, last4 from access_keys" .. which .. " order by id limit 500", user_id, tenant,
            now }
    end
    return { MADE_BY .. "update access_keys set revoked_at = $3::timestamptz, is_active = false, updated_at = $3::timestamptz" .. which
        .. " returning id, owned_key, name, last4", user_id, tenant, now }
end

--- Tenants that the account ever belonged to or signed in on.
---@param user_id string
---@return string[]
function M.tenants_ever(user_id)
    local keys = {}
    for i, row in ipairs(db.read(nil, [[select tenant_key from user_tenants where user_id = $1
      union select tenant_key from auth_sessions where user_id = $1 order by tenant_key limit 1000]], user_id)) do
        keys[i] = row.tenant_key
    end
    return keys
end

--- The tenant and app chosen last.
---@param c table id, user_id, tenant_key, app_key, now
---@return table statement
function M.put_context(c)
    return { [[insert into user_contexts (id, user_id, tenant_key, app_key, created_at, updated_at)
      values ($1, $2, $3, $4, $5::timestamptz, $5::timestamptz)
      on conflict (user_id) do update set tenant_key = excluded.tenant_key, app_key = excluded.app_key,
        updated_at = excluded.updated_at]], c.id, c.user_id, c.tenant_key, c.app_key, c.now }
end

---@param user_id string
---@return table[] {tenant_key, name, status, joined_at}
function M.tenants_of(user_id)
    return db.read(nil, [[select m.tenant_key, t.name, m.status, m.joined_at from user_tenants m join tenants t on t.tenant_key =
      m.tenant_key
      where m.user_id = $1 and m.status <> 'removed' and t.is_active order by m.created_at, m.tenant_key limit 500]], user_id)
end

-- Credentials ----------------------------------------------------------------------------------------------------------------

---@param user_id string
---@return table|nil local credential
function M.credential(user_id)
    return db.one(nil, [[select id, user_id, password, previous_hashes, password_changed_at from user_credentials
      where user_id = $1 and provider = 'local' and is_active]], user_id)
end

---@param c table id, user_id, password (hash or nil), now
---@return table statement
function M.put_credential(c)
    return { [[insert into user_credentials as c (id, user_id, password, provider, password_changed_at, created_at, updated_at)
      values ($1, $2, $3, 'local', $4::timestamptz, $4::timestamptz, $4::timestamptz)
      on conflict (user_id, provider) do update set password = excluded.password, password_changed_at = excluded.password_changed_at,
        is_active = true, updated_at = excluded.updated_at]], c.id, c.user_id, c.password or null, c.now }
end

---@param c table user_id, password, previous (list of hashes), now
---@return table statement
function M.change_password(c)
    return { [[update user_credentials set password = $2, previous_hashes = $3::jsonb, password_changed_at = $4::timestamptz,
      updated_at = $4::timestamptz where user_id = $1 and provider = 'local']], c.user_id, c.password, pg.json(json.array(c.previous)),
          c.now }
end

--- Notes on the user that a password was set, which voids what was proven before.
---@param user_id string
---@param version integer|nil token_version that must still stand, else KS409 is raised
---@param now string
---@return table statement
function M.password_set(user_id, version, now)
    return { [[with done as (update users set must_change_password = false, token_version = token_version + 1,
        updated_at = $3::timestamptz where id = $1 and ($2::int is null or token_version = $2::int) returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], user_id, version or null, now }
end

---@param id string credential
---@param old string
---@param new string
---@param now string
function M.rehash(id, old, new, now)
    db.query(nil, "update user_credentials set password = $3, updated_at = $4::timestamptz where id = $1 and password = $2", id, old, new,
        now)
end

--- Switches all credentials of an account off, or on again.
---@param user_id string
---@param active boolean
---@param now string
---@return table statement
function M.set_credentials(user_id, active, now)
    return { "update user_credentials set is_active = $2, updated_at = $3::timestamptz where user_id = $1", user_id, active, now }
end

-- Codes ----------------------------------------------------------------------------------------------------------------------

---@param identifier string
---@param type string
---@return table|nil newest code {id, created_at, is_verified, is_active, expires_at}
function M.newest_otp(identifier, type)
    return db.one(nil, [[select id, created_at, is_verified, is_active, expires_at from otps where identifier = $1 and type = $2
      order by created_at desc, id desc limit 1]], identifier, type)
end

---@param identifier string
---@param type string
---@param now string
---@return table statement
function M.retire_otps(identifier, type, now)
    return { "update otps set is_active = false, code_enc = null, updated_at = $3::timestamptz "
        .. "where identifier = $1 and type = $2 and is_active",
        identifier, type, now }
end

--- Two statements that come first in the transaction of a new code: what makes one for the same identifier waits, and KS409 says that the
--- newest is younger than `since` and was not used.
---@param identifier string
---@param type string
---@param since string
---@return table statement, table statement
function M.admit_otp(identifier, type, since)
    return { "select pg_advisory_xact_lock(hashtextextended($1, 7205012))", type .. "|" .. identifier },
        { [[select kasma_must(not coalesce((select not is_verified and created_at > $3::timestamptz from otps
          where identifier = $1 and type = $2 order by created_at desc, id desc limit 1), false), 'KS409')]], identifier, type, since }
end

---@param o table id, user_id, code_hmac, code_enc (raw), type, identifier, expires_at, now
---@return table statement
function M.insert_otp(o)
    return { [[insert into otps (id, user_id, code_hmac, code_enc, type, channel, identifier, expires_at, sent_count, created_at,
      updated_at)
      values ($1, $2, $3, $4, $5, 'EMAIL', $6, $7::timestamptz, 1, $8::timestamptz, $8::timestamptz)]], o.id, o.user_id or null,
          o.code_hmac,
        o.code_enc and pg.bytea(o.code_enc) or null, o.type, o.identifier, o.expires_at, o.now }
end

---@param identifier string
---@param type string
---@return table|nil active code {id}
function M.active_otp(identifier, type)
    return db.one(nil, "select id from otps where identifier = $1 and type = $2 and is_active", identifier, type)
end

--- One try at a code: the row is consumed when the HMAC fits, its attempts grow when it does not, and it dies with the last.
---@param id string
---@param hmac string
---@param now string
---@return table|nil {is_verified, attempts, user_id}; nil: dead, expired or used
function M.try_otp(id, hmac, now)
    return db.query(nil, [[update otps set attempts = attempts + case when code_hmac = $2 then 0 else 1 end, is_verified = (code_hmac = $2),
        is_active = code_hmac <> $2 and attempts + 1 < max_attempts,
        code_enc = case when code_hmac = $2 or attempts + 1 >= max_attempts then null else code_enc end, updated_at = $3::timestamptz
      where id = $1 and is_active and expires_at > $3::timestamptz and attempts < max_attempts
      returning is_verified, attempts, user_id]], id, hmac, now)[1]
end

---@param id string
---@return table|nil {code_enc, is_active, type, identifier, expires_at}
function M.otp_to_send(id)
    return db.one(nil, "select id, code_enc, is_active, type, identifier, expires_at from otps where id = $1", id)
end

---@param id string
---@param now string
function M.otp_sent(id, now) db.query(nil, "update otps set code_enc = null, updated_at = $2::timestamptz where id = $1", id, now) end

-- Sessions -------------------------------------------------------------------------------------------------------------------

local SESSION = [[s.id, s.user_id, s.access_token, s.refresh_token, host(s.ip_address) as ip_address, s.family_id, s.parent_id,
  s.rotated_at,
  s.revoked_at, s.user_agent, s.tenant_key, s.app_key, s.amr, s.restricted, s.last_seen_at, s.created_at, s.expires_at]]

---@param s table
---@return table statement
function M.insert_session(s)
    return { [[insert into auth_sessions (id, user_id, access_token, refresh_token, ip_address, family_id, parent_id, user_agent,
      tenant_key,
      app_key, amr, last_seen_at, created_at, updated_at, expires_at, restricted)
      values ($1, $2, $3, $4, $5::inet, $6, $7, $8, $9, $10, $11::text[], $12::timestamptz, $12::timestamptz, $12::timestamptz,
        $13::timestamptz, $14)]],
        s.id, s.user_id, s.access_token, s.refresh_token, s.ip or null, s.family_id, s.parent_id or null, s.user_agent or null,
            s.tenant_key,
        s.app_key, pg.array(s.amr), s.now, s.expires_at, s.restricted == true }
end

---@param hash string of the refresh token
---@return table|nil
function M.session_by_refresh(hash) return db.one(nil, "select " .. SESSION .. " from auth_sessions s where s.refresh_token = $1", hash) end

---@param id string
---@return table|nil
function M.session(id) return db.one(nil, "select " .. SESSION .. " from auth_sessions s where s.id = $1", id) end

--- Marks a session as rotated, once; raises KS409 when somebody was faster.
---@param id string
---@param now string
---@return table statement
function M.rotate_session(id, now)
    return { [[with done as (update auth_sessions set rotated_at = $2::timestamptz, updated_at = $2::timestamptz
        where id = $1 and rotated_at is null and revoked_at is null returning 1)
      select kasma_must((select count(*) from done) = 1, 'KS409')]], id, now }
end

---@param family_id string
---@return table first session of the family {created_at}
function M.family_start(family_id)
    return db.one(nil, "select min(created_at) as created_at from auth_sessions where family_id = $1", family_id)
end

--- Forgets the sealed form of codes that ran out before their mail went.
---@param now string
function M.forget_expired_otps(now)
    db.query(nil, "update otps set code_enc = null, is_active = false, updated_at = $1::timestamptz "
        .. "where expires_at < $1::timestamptz and (code_enc is not null or is_active)", now)
end

--- Removes codes that ran out, oldest first.
---@param before string
---@param limit integer
---@return integer removed
function M.prune_otps(before, limit)
    return db.query(nil, [[delete from otps where id in (select id from otps where expires_at < $1::timestamptz order by expires_at
      limit $2)]], before, limit).affected
end

--- Removes sessions that ended, oldest first.
---@param before string
---@param limit integer
---@return integer removed
function M.prune_sessions(before, limit)
    return db.query(nil, [[delete from auth_sessions where id in (select id from auth_sessions where expires_at < $1::timestamptz
      order by expires_at limit $2)]], before, limit).affected
end

--- First in a transaction that ends sessions: what signs the same user in, or refreshes, waits, and then finds it done.
---@param user_id string
---@return table statement
function M.hold_user(user_id) return { "select 1 from users where id = $1 for no key update", user_id } end

--- First in a transaction that makes a session: raises KS409 when every token of the user was voided since `version` was read, so that no
--- session slips in beside a lock, a deletion or a sign-out everywhere.
---@param user_id string
---@param version integer token_version
---@return table statement
function M.user_stands(user_id, version)
    return { [[with held as (select token_version from users where id = $1 and deleted_at is null for no key update)
      select kasma_must(coalesce((select token_version = $2 from held), false), 'KS409')]], user_id, version }
end

--- Ends sessions; answers their ids and access token hashes. `head`: not one that was exchanged for a fresh one before.
---@param by "id"|"user"|"family"
---@param value string
---@param reason string
---@param now string
---@param except string|nil session family to keep
---@return table statement
function M.revoke_sessions(by, value, reason, now, except)
    local column = by == "user" and "user_id" or by == "family" and "family_id" or "id"
    return { "update auth_sessions set revoked_at = $3::timestamptz, revoke_reason = $2, updated_at = $3::timestamptz where " .. column
        .. " = $1 and revoked_at is null and ($4::uuid is null or family_id <> $4::uuid) and expires_at > $3::timestamptz "
        .. "returning id, user_id, access_token, refresh_token, family_id, rotated_at is null as head", value, reason, now, except or null }
end

---@param user_id string
---@param since string
---@return table[] sessions that ended, or were exchanged for fresh ones, since then {id, access_token, refresh_token, family_id, rotated}
function M.sessions_ended(user_id, since)
    return db.query(nil, [[select id, access_token, refresh_token, family_id, revoked_at is null as rotated from auth_sessions
      where user_id = $1 and (revoked_at >= $2::timestamptz or rotated_at >= $2::timestamptz)
      order by coalesce(revoked_at, rotated_at) desc limit 1000]], user_id, since)
end

--- Sessions that were exchanged for fresh ones, in the order of those: their ids tell the time, so that this reads a range of the key.
---@param after string id of a fresh session
---@param limit integer
---@return table[] {id, access_token, refresh_token, family_id, fresh_id}
function M.sessions_exchanged(after, limit)
    return db.query(nil, [[select p.id, p.access_token, p.refresh_token, p.family_id, s.id as fresh_id from auth_sessions s
      join auth_sessions p on p.id = s.parent_id where s.id > $1::uuid order by s.id limit $2]], after, limit)
end

---@param user_id string
---@param now string
---@return table[] live sessions, newest first
function M.sessions_of(user_id, now)
    return db.read(nil, "select " .. SESSION .. [[ from auth_sessions s where s.user_id = $1 and s.revoked_at is null and s.rotated_at is
      null
      and s.expires_at > $2::timestamptz order by s.created_at desc, s.id desc limit 100]], user_id, now)
end

---@param user_id string
---@param ip string|nil
---@param agent string|nil
---@param since string
---@return boolean
function M.device_known(user_id, ip, agent, since)
    if not agent then return false end
    return db.one(nil, [[select 1 as yes from auth_sessions where user_id = $1 and user_agent = $2 and ip_address is not distinct from
      $3::inet
      and created_at > $4::timestamptz limit 1]], user_id, agent, ip or null, since) ~= nil
end

-- What is held about a person ---------------------------------------------------------------------------------------------------

---@param user_id string
---@return table[] without hashes and secrets
function M.credentials_of(user_id)
    return db.read(nil, [[select id, provider, provider_id, is_active, password_changed_at, confirmed_at, created_at, updated_at
      from user_credentials where user_id = $1 order by created_at limit 20]], user_id)
end

---@param user_id string
---@return table[]
function M.memberships_of(user_id)
    return db.read(nil, [[select tenant_key, status, joined_at, created_at, updated_at from user_tenants where user_id = $1
      order by created_at limit 1000]], user_id)
end

---@param user_id string
---@return table[] of the last month, without tokens
function M.all_sessions_of(user_id)
    return db.read(nil, [[select id, host(ip_address) as ip_address, user_agent, tenant_key, app_key, amr, created_at, last_seen_at,
      expires_at, revoked_at, revoke_reason from auth_sessions where user_id = $1 order by created_at desc, id desc limit 5000]], user_id)
end

---@param tenant string
---@param user_id string
---@return table[]
function M.role_keys_of(tenant, user_id)
    return db.read(tenant, [[select r.role_key, r.display_name, x.expires_at, x.created_at from user_roles x
      join roles r on r.tenant_key = x.tenant_key and r.id = x.role_id where x.tenant_key = $1 and x.user_id = $2 order by r.role_key
      limit 100]], tenant, user_id)
end

local PERSONAL = {
    sign_in_event = [[select id, action, target, metadata, host(ip) as ip, user_agent, created_at from audit_auth_log
      where tenant_key = $1 and user_id = $2 and id > $3 order by id limit $4]],
    mail = [[select id, template, locale, recipient, state, created_at, sent_at from mail_messages
      where tenant_key = $1 and user_id = $2 and id > $3 order by id limit $4]],
    action = [[select id, action, entity_type, entity_id, outcome, created_at from audit_index
      where tenant_key = $1 and actor_id = $2 and id > $3 order by id limit $4]],
}
local FIRST_ID = "00000000-0000-0000-0000-000000000000"

---@param tenant string
---@param user_id string
---@param kind "sign_in_event"|"mail"|"action"
---@param after string|nil id of the last row
---@param limit integer
---@return table[]
function M.personal_rows(tenant, user_id, kind, after, limit)
    return db.read(tenant, PERSONAL[kind], tenant, user_id, after or FIRST_ID, limit)
end

--- Mails, and the rows that name apps and keys of a user. The sign-in log and the audit keep their events for their own time.
---@param tenant string
---@param user_id string
---@param email string
---@return table[] statements
function M.erase_tenant_rows(tenant, user_id, email)
    return {
        { "delete from mail_messages where tenant_key = $1 and (user_id = $2 or recipient = $3)", tenant, user_id, email },
        { "delete from user_roles where tenant_key = $1 and user_id = $2", tenant, user_id },
        { "delete from user_apps where tenant_key = $1 and user_id = $2", tenant, user_id },
        { "delete from user_access_keys where tenant_key = $1 and user_id = $2", tenant, user_id },
    }
end

return M
