-- What notices say, by their type and the reader's language. A row keeps a text too, for languages and types that have none here: that of
-- SYSTEM is its sender's own.
local M = {}

-- {title, body for one actor, body for several}. {{actor}} is the newest actor's name, {{others}} how many there are beside.
local TEXTS = {
    en = {
        LIKE = { "New reaction", "{{actor}} reacted to what you wrote", "{{actor}} and {{others}} others reacted to what you wrote" },
        COMMENT = { "New comment", "{{actor}} commented on what you wrote", "{{actor}} and {{others}} others commented on what you wrote" },
        TAG = { "You were mentioned", "{{actor}} mentioned you" },
        SHARE = { "Shared", "{{actor}} shared your post", "{{actor}} and {{others}} others shared your post" },
        FOLLOW = { "New follower", "{{actor}} follows you", "{{actor}} and {{others}} others follow you" },
        FRIEND_REQUEST = { "Friend request", "{{actor}} would like to be your friend" },
        FRIEND_ACCEPTED = { "Friend request accepted", "{{actor}} is your friend now" },
        GROUP_JOIN_REQUEST = { "Request to join", "{{actor}} would like to join your group" },
        GROUP_POST_PENDING = { "A post waits", "{{actor}} wrote a post that waits for your approval" },
        GROUP_POST_APPROVED = { "Post approved", "Your post stands in the group now" },
        GROUP_POST_REJECTED = { "Post not approved", "Your post was not approved" },
        GROUP_INVITE = { "Invitation", "{{actor}} invites you to a group" },
        somebody = "Somebody",
    },
    vi = {
        LIKE = { "Cảm xúc mới", "{{actor}} đã bày tỏ cảm xúc về nội dung của bạn",
            "{{actor}} và {{others}} người khác đã bày tỏ cảm xúc về nội dung của bạn" },
        COMMENT = { "Bình luận mới", "{{actor}} đã bình luận về nội dung của bạn",
            "{{actor}} và {{others}} người khác đã bình luận về nội dung của bạn" },
        TAG = { "Bạn được nhắc đến", "{{actor}} đã nhắc đến bạn" },
        SHARE = { "Bài viết được chia sẻ", "{{actor}} đã chia sẻ bài viết của bạn",
            "{{actor}} và {{others}} người khác đã chia sẻ bài viết của bạn" },
        FOLLOW = { "Người theo dõi mới", "{{actor}} đã theo dõi bạn", "{{actor}} và {{others}} người khác đã theo dõi bạn" },
        FRIEND_REQUEST = { "Lời mời kết bạn", "{{actor}} muốn kết bạn với bạn" },
        FRIEND_ACCEPTED = { "Đã chấp nhận kết bạn", "{{actor}} đã trở thành bạn của bạn" },
        GROUP_JOIN_REQUEST = { "Yêu cầu tham gia", "{{actor}} muốn tham gia nhóm của bạn" },
        GROUP_POST_PENDING = { "Bài viết chờ duyệt", "{{actor}} đã gửi một bài viết đang chờ bạn duyệt" },
        GROUP_POST_APPROVED = { "Bài viết đã được duyệt", "Bài viết của bạn đã được đăng trong nhóm" },
        GROUP_POST_REJECTED = { "Bài viết không được duyệt", "Bài viết của bạn không được duyệt" },
        GROUP_INVITE = { "Lời mời", "{{actor}} mời bạn tham gia một nhóm" },
        somebody = "Ai đó",
    },
}

--- The language to read in: what the reader asks for most, of those that there are, else the tenant's; nil where there is neither.
---@param accept string|nil Accept-Language
---@param default string|nil the tenant's
---@return string|nil
function M.language(accept, default)
    local best, weight = nil, 0
    for tag, rest in tostring(accept or ""):sub(1, 500):gmatch("([%a-]+)([^,]*)") do
        local language = tag:match("^%a+"):lower()
        local q = tonumber(rest:match(";%s*q%s*=%s*([%d.]+)")) or 1
        if TEXTS[language] and q > weight then best, weight = language, q end
    end
    if best then return best end
    local own = tostring(default or ""):match("^%a+")
    return own and TEXTS[own:lower()] and own:lower() or nil
end

--- Title and body of a notice in a language; nil: as the row has them.
---@param notice_type string
---@param language string|nil
---@param actor string|nil name of the newest actor
---@param count integer how many actors
---@return string|nil title, string|nil body
function M.of(notice_type, language, actor, count)
    local texts = TEXTS[language]
    local form = texts and texts[notice_type]
    if type(form) ~= "table" then return nil, nil end
    local body = count > 1 and form[3] or form[2]
    local values = { actor = actor or texts.somebody, others = ("%d"):format(math.max(0, count - 1)) }
    return form[1], (body:gsub("{{(%l+)}}", values))
end

return M
