#include "http/status.h"

struct str status_reason(int status) {
    switch (status) {
    case 100:
        return STR("Continue");
    case 101:
        return STR("Switching Protocols");
    case 200:
        return STR("OK");
    case 201:
        return STR("Created");
    case 202:
        return STR("Accepted");
    case 203:
        return STR("Non-Authoritative Information");
    case 204:
        return STR("No Content");
    case 205:
        return STR("Reset Content");
    case 206:
        return STR("Partial Content");
    case 207:
        return STR("Multi-Status");
    case 300:
        return STR("Multiple Choices");
    case 301:
        return STR("Moved Permanently");
    case 302:
        return STR("Found");
    case 303:
        return STR("See Other");
    case 304:
        return STR("Not Modified");
    case 307:
        return STR("Temporary Redirect");
    case 308:
        return STR("Permanent Redirect");
    case 400:
        return STR("Bad Request");
    case 401:
        return STR("Unauthorized");
    case 402:
        return STR("Payment Required");
    case 403:
        return STR("Forbidden");
    case 404:
        return STR("Not Found");
    case 405:
        return STR("Method Not Allowed");
    case 406:
        return STR("Not Acceptable");
    case 408:
        return STR("Request Timeout");
    case 409:
        return STR("Conflict");
    case 410:
        return STR("Gone");
    case 411:
        return STR("Length Required");
    case 412:
        return STR("Precondition Failed");
    case 413:
        return STR("Payload Too Large");
    case 414:
        return STR("URI Too Long");
    case 415:
        return STR("Unsupported Media Type");
    case 416:
        return STR("Range Not Satisfiable");
    case 417:
        return STR("Expectation Failed");
    case 418:
        return STR("I'm a teapot");
    case 421:
        return STR("Misdirected Request");
    case 422:
        return STR("Unprocessable Entity");
    case 423:
        return STR("Locked");
    case 424:
        return STR("Failed Dependency");
    case 425:
        return STR("Too Early");
    case 426:
        return STR("Upgrade Required");
    case 428:
        return STR("Precondition Required");
    case 429:
        return STR("Too Many Requests");
    case 431:
        return STR("Request Header Fields Too Large");
    case 451:
        return STR("Unavailable For Legal Reasons");
    case 500:
        return STR("Internal Server Error");
    case 501:
        return STR("Not Implemented");
    case 502:
        return STR("Bad Gateway");
    case 503:
        return STR("Service Unavailable");
    case 504:
        return STR("Gateway Timeout");
    case 505:
        return STR("HTTP Version Not Supported");
    case 507:
        return STR("Insufficient Storage");
    default:
        return STR("Unknown");
    }
}

bool status_body(int status, struct str detail, struct buf *out) {
    switch (status) {
    case 408:
    case 414:
    case 431:
        return true;
    case 413:
        return buf_add(out, STR("{\"statusCode\":413,\"message\":\"request entity too large\"}"));
    case 415:
        return buf_add(out, STR("{\"statusCode\":415,\"message\":")) && buf_json_string(out, detail) &&
               buf_byte(out, '}');
    case 500:
        return buf_add(out, STR("{\"statusCode\":500,\"message\":\"Internal server error\"}"));
    case 400:
        if (detail.len == 0) return true;
        break;
    default:
        if (detail.len == 0) detail = status_reason(status);
    }
    return buf_add(out, STR("{\"message\":")) && buf_json_string(out, detail) && buf_add(out, STR(",\"error\":")) &&
           buf_json_string(out, status_reason(status)) && buf_printf(out, ",\"statusCode\":%d}", status);
}
