/* Allow-list sanitiser over libgumbo's tree.
 *
 * Output is always produced from the tree, never copied from the input, so that what a browser parses is what was
 * checked. Invariants: only elements and attributes of the tables below are written; attribute values and text are
 * escaped; links and sources are http, https, mailto or relative; frames only from the two video hosts; style holds
 * only the four properties with plain values. Comments, doctypes and foreign content (svg, math) are dropped. */
#include "content/html.h"

#include <gumbo.h>
#include <setjmp.h>
#include <string.h>
#include <time.h>

#include "runtime/arena.h"

#define DEPTH_MAX 200
#define FIRST_BLOCK ((size_t)64 * 1024)
#define PARSE_BYTES                                                                                                    \
    ((size_t)64 * 1024 * 1024) /* most memory of one parse; ordinary text takes some 40 times its size */
#define PARSE_MS 300           /* most of the processor's time */
#define LOOK_EVERY 256         /* allocations between two looks at the clock */

enum kind { DROP_TAG, KEEP, DROP_ALL };

static enum kind kind_of(GumboTag tag) {
    switch (tag) {
    case GUMBO_TAG_P:
    case GUMBO_TAG_BR:
    case GUMBO_TAG_HR:
    case GUMBO_TAG_DIV:
    case GUMBO_TAG_SPAN:
    case GUMBO_TAG_STRONG:
    case GUMBO_TAG_B:
    case GUMBO_TAG_EM:
    case GUMBO_TAG_I:
    case GUMBO_TAG_U:
    case GUMBO_TAG_S:
    case GUMBO_TAG_SUB:
    case GUMBO_TAG_SUP:
    case GUMBO_TAG_H1:
    case GUMBO_TAG_H2:
    case GUMBO_TAG_H3:
    case GUMBO_TAG_H4:
    case GUMBO_TAG_H5:
    case GUMBO_TAG_H6:
    case GUMBO_TAG_UL:
    case GUMBO_TAG_OL:
    case GUMBO_TAG_LI:
    case GUMBO_TAG_DL:
    case GUMBO_TAG_DT:
    case GUMBO_TAG_DD:
    case GUMBO_TAG_TABLE:
    case GUMBO_TAG_THEAD:
    case GUMBO_TAG_TBODY:
    case GUMBO_TAG_TFOOT:
    case GUMBO_TAG_TR:
    case GUMBO_TAG_TH:
    case GUMBO_TAG_TD:
    case GUMBO_TAG_CAPTION:
    case GUMBO_TAG_BLOCKQUOTE:
    case GUMBO_TAG_PRE:
    case GUMBO_TAG_CODE:
    case GUMBO_TAG_A:
    case GUMBO_TAG_IMG:
    case GUMBO_TAG_FIGURE:
    case GUMBO_TAG_FIGCAPTION:
    case GUMBO_TAG_IFRAME:
        return KEEP;
    case GUMBO_TAG_SCRIPT:
    case GUMBO_TAG_STYLE:
    case GUMBO_TAG_NOSCRIPT:
    case GUMBO_TAG_TEMPLATE:
    case GUMBO_TAG_TITLE:
    case GUMBO_TAG_HEAD:
    case GUMBO_TAG_OBJECT:
    case GUMBO_TAG_EMBED:
    case GUMBO_TAG_TEXTAREA:
    case GUMBO_TAG_SELECT:
    case GUMBO_TAG_NOEMBED:
    case GUMBO_TAG_NOFRAMES:
    case GUMBO_TAG_XMP:
    case GUMBO_TAG_PLAINTEXT:
    case GUMBO_TAG_SVG:
    case GUMBO_TAG_MATH:
        return DROP_ALL;
    default:
        return DROP_TAG;
    }
}

static bool is_void(GumboTag tag) {
    return tag == GUMBO_TAG_BR || tag == GUMBO_TAG_HR || tag == GUMBO_TAG_IMG;
}

static bool add_escaped(struct buf *out, struct str s) {
    for (size_t i = 0; i < s.len; i++) {
        char c = s.at[i];
        bool ok = c == '&'   ? buf_add(out, STR("&amp;"))
                  : c == '<' ? buf_add(out, STR("&lt;"))
                  : c == '>' ? buf_add(out, STR("&gt;"))
                  : c == '"' ? buf_add(out, STR("&quot;"))
                             : buf_byte(out, c);
        if (!ok) return false;
    }
    return true;
}

/* http, https, mailto or no scheme at all. A scheme is what stands before the first ':' that comes before any of / ? #.
 */
static bool safe_url(struct str url) {
    url = str_trim(url);
    for (size_t i = 0; i < url.len; i++)
        if ((unsigned char)url.at[i] <= 0x20 || url.at[i] == '\\') return false;
    for (size_t i = 0; i < url.len; i++) {
        if (url.at[i] == '/' || url.at[i] == '?' || url.at[i] == '#') return true;
        if (url.at[i] != ':') continue;
        struct str scheme = str_n(url.at, i);
        return str_ieq(scheme, STR("http")) || str_ieq(scheme, STR("https")) || str_ieq(scheme, STR("mailto"));
    }
    return url.len > 0;
}

static bool safe_frame(struct str url) {
    static const char *const hosts[] = {"https://www.youtube.com/embed/", "https://www.youtube-nocookie.com/embed/",
                                        "https://player.vimeo.com/video/"};
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++)
        if (str_starts(url, str_of(hosts[i])) && safe_url(url)) return true;
    return false;
}

static bool plain_style_value(struct str v) {
    for (size_t i = 0; i < v.len; i++) {
        char c = v.at[i];
        bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '#' || c == '.' ||
                  c == '%' || c == '-' || c == ' ' || c == ',';
        if (!ok) return false;
    }
    return v.len > 0 && v.len <= 40;
}

/* Keeps the four properties that carry no risk; anything else of the attribute is left out. */
static bool add_style(struct buf *out, struct str style) {
    static const char *const allowed[] = {"color", "background-color", "text-align", "font-size"};
    bool any = false;
    while (style.len > 0) {
        const char *semi = memchr(style.at, ';', style.len);
        struct str one = str_n(style.at, semi ? (size_t)(semi - style.at) : style.len);
        style = semi ? str_n(semi + 1, style.len - one.len - 1) : str_n("", 0);
        const char *colon = memchr(one.at, ':', one.len);
        if (!colon) continue;
        struct str name = str_trim(str_n(one.at, (size_t)(colon - one.at)));
        struct str value = str_trim(str_n(colon + 1, one.len - (size_t)(colon - one.at) - 1));
        bool known = false;
        for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
            known = known || str_ieq(name, str_of(allowed[i]));
        if (!known || !plain_style_value(value)) continue;
        if (!buf_add(out, any ? STR(";") : STR(" style=\"")) || !add_escaped(out, name) || !buf_byte(out, ':') ||
            !add_escaped(out, value))
            return false;
        any = true;
    }
    return !any || buf_byte(out, '"');
}

static bool attribute_allowed(GumboTag tag, struct str name, struct str value) {
    if (tag == GUMBO_TAG_A && str_ieq(name, STR("href"))) return safe_url(value);
    if (tag == GUMBO_TAG_IMG && str_ieq(name, STR("src"))) return safe_url(value) && !str_starts(value, STR("mailto:"));
    if (tag == GUMBO_TAG_IFRAME && str_ieq(name, STR("src"))) return safe_frame(value);
    if (tag == GUMBO_TAG_IMG && str_ieq(name, STR("alt"))) return true;
    if (str_ieq(name, STR("title"))) return true;
    bool sized = tag == GUMBO_TAG_IMG || tag == GUMBO_TAG_IFRAME;
    if (sized && (str_ieq(name, STR("width")) || str_ieq(name, STR("height")))) return plain_style_value(value);
    bool cell = tag == GUMBO_TAG_TD || tag == GUMBO_TAG_TH;
    if (cell && (str_ieq(name, STR("colspan")) || str_ieq(name, STR("rowspan")))) return plain_style_value(value);
    return false;
}

static bool add_attributes(struct buf *out, const GumboElement *e) {
    for (unsigned i = 0; i < e->attributes.length; i++) {
        const GumboAttribute *a = e->attributes.data[i];
        struct str name = str_of(a->name), value = str_of(a->value);
        if (str_ieq(name, STR("style"))) {
            if (!add_style(out, value)) return false;
        } else if (attribute_allowed(e->tag, name, value)) {
            if (!buf_byte(out, ' ') || !add_escaped(out, name) || !buf_add(out, STR("=\"")) ||
                !add_escaped(out, value) || !buf_byte(out, '"'))
                return false;
        }
    }
    return e->tag != GUMBO_TAG_A || buf_add(out, STR(" rel=\"noopener nofollow\""));
}

static bool has_safe_source(const GumboElement *e) {
    const GumboAttribute *src = gumbo_get_attribute(&e->attributes, "src");
    return src && attribute_allowed(e->tag, STR("src"), str_of(src->value));
}

static bool too_deep(struct error *err) {
    return error_set(err, ERR_LIMIT, "HTML is nested more than %d levels deep", DEPTH_MAX);
}

static bool no_memory(struct error *err) {
    return error_set(err, ERR_MEMORY, "out of memory");
}

static bool write_node(const GumboNode *node, struct buf *out, int depth, struct error *err);

static bool write_children(const GumboElement *e, struct buf *out, int depth, struct error *err) {
    for (unsigned i = 0; i < e->children.length; i++)
        if (!write_node(e->children.data[i], out, depth + 1, err)) return false;
    return true;
}

static bool write_node(const GumboNode *node, struct buf *out, int depth, struct error *err) {
    if (depth > DEPTH_MAX) return too_deep(err);
    if (node->type == GUMBO_NODE_TEXT || node->type == GUMBO_NODE_WHITESPACE || node->type == GUMBO_NODE_CDATA)
        return add_escaped(out, str_of(node->v.text.text)) || no_memory(err);
    if (node->type != GUMBO_NODE_ELEMENT) return true;
    const GumboElement *e = &node->v.element;
    enum kind kind = e->tag_namespace == GUMBO_NAMESPACE_HTML ? kind_of(e->tag) : DROP_ALL;
    if (kind == DROP_ALL) return true;
    if (kind == DROP_TAG) return write_children(e, out, depth, err);
    bool sourced = e->tag == GUMBO_TAG_IMG || e->tag == GUMBO_TAG_IFRAME;
    if (sourced && !has_safe_source(e)) return true;
    struct str name = str_of(gumbo_normalized_tagname(e->tag));
    if (!buf_byte(out, '<') || !buf_add(out, name) || !add_attributes(out, e) || !buf_byte(out, '>'))
        return no_memory(err);
    if (is_void(e->tag)) return true;
    /* What stands in a frame is shown by nobody. */
    if (e->tag != GUMBO_TAG_IFRAME && !write_children(e, out, depth, err)) return false;
    return (buf_add(out, STR("</")) && buf_add(out, name) && buf_byte(out, '>')) || no_memory(err);
}

/* A parse that may be given up at any allocation. A few formatting tags that are never closed are put by the standard's
 * rules into every paragraph that follows, so that 200 KiB of input can become gigabytes; libgumbo has no bound for
 * that and does not look whether memory was given. Everything it takes lies in one arena, so nothing is lost when it is
 * left by longjmp. */
struct parse {
    struct arena *arena;
    GumboOutput *tree;
    unsigned allocations;
    struct timespec began;
    jmp_buf gave_up;
};

/* The thread's own time: a busy machine must not make good input bad. */
static bool took_too_long(const struct timespec *began) {
    struct timespec now;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) != 0) return false;
    int64_t ms = (int64_t)(now.tv_sec - began->tv_sec) * 1000 + (now.tv_nsec - began->tv_nsec) / 1000000;
    return ms > PARSE_MS;
}

static void *give(void *data, size_t size) {
    struct parse *p = data;
    void *memory = arena_alloc(p->arena, size);
    if (!memory || (++p->allocations % LOOK_EVERY == 0 && took_too_long(&p->began))) longjmp(p->gave_up, 1);
    return memory;
}

static void take_back(void *data, void *memory) {
    (void)data;
    (void)memory; /* the arena goes as a whole */
}

static bool parse(struct parse *p, struct str html, struct error *err) {
    if (html.len > HTML_MAX) {
        error_set(err, ERR_LIMIT, "HTML is larger than %zu bytes", HTML_MAX);
        return false;
    }
    *p = (struct parse){.arena = arena_new(FIRST_BLOCK)};
    if (!p->arena) {
        no_memory(err);
        return false;
    }
    arena_limit(p->arena, PARSE_BYTES);
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &p->began) != 0) p->began = (struct timespec){0};
    GumboOptions options = kGumboDefaultOptions;
    options.max_errors = 0;
    options.allocator = give;
    options.deallocator = take_back;
    options.userdata = p;
    if (setjmp(p->gave_up) == 0) {
        p->tree = gumbo_parse_with_options(&options, html.at, html.len);
        return true;
    }
    arena_free(p->arena);
    error_set(err, ERR_LIMIT, "HTML is nested too deeply or leaves too many tags open");
    return false;
}

bool html_sanitize(struct str html, struct buf *out, struct error *err) {
    struct parse p;
    if (!parse(&p, html, err)) return false;
    bool ok = write_node(p.tree->root, out, 0, err);
    arena_free(p.arena);
    return ok;
}

struct plain {
    struct buf *out;
    size_t left;  /* characters that still fit */
    bool blank;   /* a blank is due before the next character */
    bool started; /* something was written */
};

static bool write_plain(struct plain *p, const char *text) {
    for (; *text && p->left > 0; text++) {
        char c = *text;
        if (c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f') {
            p->blank = p->started;
            continue;
        }
        bool lead = ((unsigned char)c & 0xC0) != 0x80; /* a continuation byte is no character of its own */
        if (lead && p->blank) {
            if (--p->left == 0) return true;
            if (!buf_byte(p->out, ' ')) return false;
        }
        if (lead) {
            /* The bytes that continue it come with it. */
            size_t n = 1;
            while (((unsigned char)text[n] & 0xC0) == 0x80) n++;
            if (!buf_add(p->out, str_n(text, n))) return false;
            text += n - 1;
            p->left--;
        }
        p->blank = false;
        p->started = true;
    }
    return true;
}

static bool plain_node(const GumboNode *node, struct plain *p, int depth, struct error *err) {
    if (depth > DEPTH_MAX) return too_deep(err);
    if (node->type == GUMBO_NODE_TEXT || node->type == GUMBO_NODE_CDATA)
        return write_plain(p, node->v.text.text) || no_memory(err);
    if (node->type == GUMBO_NODE_WHITESPACE) {
        p->blank = p->started;
        return true;
    }
    if (node->type != GUMBO_NODE_ELEMENT) return true;
    const GumboElement *e = &node->v.element;
    enum kind kind = e->tag_namespace == GUMBO_NAMESPACE_HTML ? kind_of(e->tag) : DROP_ALL;
    if (kind == DROP_ALL) return true;
    for (unsigned i = 0; i < e->children.length; i++)
        if (!plain_node(e->children.data[i], p, depth + 1, err)) return false;
    if (kind == KEEP && e->tag != GUMBO_TAG_SPAN && e->tag != GUMBO_TAG_B && e->tag != GUMBO_TAG_I &&
        e->tag != GUMBO_TAG_A && e->tag != GUMBO_TAG_EM && e->tag != GUMBO_TAG_STRONG)
        p->blank = p->started; /* a block ends a word */
    return true;
}

bool html_text(struct str html, size_t max, struct buf *out, struct error *err) {
    struct parse parsed;
    if (!parse(&parsed, html, err)) return false;
    struct plain p = {.out = out, .left = max};
    bool ok = plain_node(parsed.tree->root, &p, 0, err);
    arena_free(parsed.arena);
    return ok;
}
