// link: runtime
/* Each test reads settings in a process of its own: the first load of a process decides what later ones may change. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/config.h"
#include "runtime/log.h"

static char dir[] = "/tmp/kasma-config-XXXXXX";
static struct buf problems;

static void write_file(const char *name, const char *text) {
    char path[128];
    assert_true(snprintf(path, sizeof path, "%s/%s", dir, name) > 0);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void set(const char *name, const char *value) {
    assert_int_equal(setenv(name, value, 1), 0);
}

static void set_path(const char *name, const char *file) {
    char path[128];
    assert_true(snprintf(path, sizeof path, "%s/%s", dir, file) > 0);
    set(name, path);
}

static bool load_words(int argc, char **argv) {
    return config_load(&argc, argv, &problems);
}

static bool load(void) {
    char *argv[] = {(char *)"kasma", NULL};
    return load_words(1, argv);
}

static void assert_problem(const char *text) {
    if (!memmem(problems.data, problems.len, text, strlen(text)))
        fail_msg("no problem `%s` in:\n%.*s", text, (int)problems.len, problems.data);
}

/* Forks, so that every test starts from nothing but the two files' places. */
static void alone(void (*fn)(void)) {
    assert_int_equal(fflush(stdout), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        assert_int_equal(clearenv(), 0);
        write_file("env", "");
        write_file("conf", "");
        set_path("KASMA_DOTENV", "env");
        set_path("KASMA_CONF", "conf");
        fn();
        buf_free(&problems);
        assert_int_equal(fflush(stdout), 0);
        exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

#define ALONE(name)                                                                                                    \
    static void name##_alone(void);                                                                                    \
    static void name(void **state) {                                                                                   \
        (void)state;                                                                                                   \
        alone(name##_alone);                                                                                           \
    }                                                                                                                  \
    static void name##_alone(void)

static const char *origin(const char *name) {
    struct config_entry e;
    for (size_t i = 0; config_entry(i, &e); i++)
        if (strcmp(e.name, name) == 0) return e.origin;
    return "no such setting";
}

ALONE(test_defaults) {
    assert_true(load());
    assert_int_equal(config_int("PORT"), 5000);
    assert_true(config_bool("DATABASE_PREPARE"));
    assert_null(config_str("DATABASE_URL"));
    assert_string_equal(config_str("QUEUE_PREFIX"), "bull");
    assert_int_equal(config_env(), ENV_DEVELOPMENT);
    assert_string_equal(origin("PORT"), "default");
    assert_string_equal(origin("DATABASE_URL"), "unset");
    assert_non_null(config_str("KASMA_LUA_DIR"));
}

ALONE(test_precedence) {
    write_file("conf", "PORT = 1001\nHOST = 10.0.0.1\nWORKERS = 3\nQUEUE_PREFIX = {bull}\n");
    write_file("env", "PORT=1002\nHOST=10.0.0.2\nWORKERS=4\n");
    set("PORT", "1003");
    set("HOST", "10.0.0.3");
    char *argv[] = {(char *)"kasma", (char *)"serve", (char *)"--port=1004", (char *)"rest", (char *)"--other", NULL};
    int argc = 5;
    assert_true(config_load(&argc, argv, &problems));
    assert_int_equal(config_int("PORT"), 1004);
    assert_string_equal(config_str("HOST"), "10.0.0.3");
    assert_int_equal(config_int("WORKERS"), 4);
    assert_string_equal(config_str("QUEUE_PREFIX"), "{bull}");
    assert_string_equal(origin("PORT"), "flag");
    assert_string_equal(origin("HOST"), "environment");
    assert_string_equal(origin("WORKERS"), ".env");
    assert_string_equal(origin("QUEUE_PREFIX"), "kasma.conf");
    /* Words that are no settings stay for the command. */
    assert_int_equal(argc, 4);
    assert_string_equal(argv[2], "rest");
    assert_string_equal(argv[3], "--other");
    assert_null(argv[4]);
}

ALONE(test_tls_to_redis_is_refused_at_once) {
    set("REDIS_TLS", "on");
    set("REDIS_URL", "rediss://cache.example:6379/0");
    int argc = 0;
    char *argv[] = {NULL};
    assert_false(config_load(&argc, argv, &problems));
    assert_non_null(memmem(problems.data, problems.len, "REDIS_URL must not ask for TLS", 30));
    assert_non_null(memmem(problems.data, problems.len, "REDIS_TLS must be off", 21));
}

ALONE(test_flag_forms) {
    char *argv[] = {(char *)"kasma",
                    (char *)"serve",
                    (char *)"--port",
                    (char *)"8080",
                    (char *)"--mail-secure",
                    (char *)"word",
                    (char *)"--swagger-enabled",
                    (char *)"off",
                    NULL};
    int argc = 8;
    assert_true(config_load(&argc, argv, &problems));
    assert_int_equal(config_int("PORT"), 8080);
    assert_true(config_bool("MAIL_SECURE"));
    assert_false(config_bool("SWAGGER_ENABLED"));
    assert_int_equal(argc, 3);
    assert_string_equal(argv[2], "word");
}

ALONE(test_a_flag_without_its_value) {
    char *argv[] = {(char *)"kasma", (char *)"serve", (char *)"--port", NULL};
    assert_false(load_words(3, argv));
    assert_problem("--port needs a value");
}

ALONE(test_file_forms) {
    write_file(
        "env",
        "# a comment\n\n  export HOST = \"10.0.0.9\"   # why\nMAIL_FROM_NAME='Tea # House'\nMAIL_USER=a\\nb # c\n"
        "MAIL_PASS=\"two\\nlines \\\"x\\\"\"\nSOMETHING_ELSE=not ours\nPORT=\n");
    assert_true(load());
    assert_string_equal(config_str("HOST"), "10.0.0.9");
    assert_string_equal(config_str("MAIL_FROM_NAME"), "Tea # House");
    assert_string_equal(config_str("MAIL_USER"), "a\\nb");
    assert_string_equal(config_str("MAIL_PASS"), "two\nlines \"x\"");
    assert_int_equal(config_int("PORT"), 5000); /* empty is unset */
}

ALONE(test_secret_from_a_file) {
    write_file("jwt", "  pR7x-2fKq9_LmZ0sVt4bYw8cHd3eJgA1uN6  \n");
    set_path("JWT_SECRET_FILE", "jwt");
    assert_true(load());
    assert_string_equal(config_str("JWT_SECRET"), "pR7x-2fKq9_LmZ0sVt4bYw8cHd3eJgA1uN6");
    struct config_entry e;
    for (size_t i = 0; config_entry(i, &e); i++) assert_null(strstr(e.shown, "pR7x"));
}

ALONE(test_secret_twice) {
    write_file("jwt", "pR7x-2fKq9_LmZ0sVt4bYw8cHd3eJgA1uN6");
    set_path("JWT_SECRET_FILE", "jwt");
    set("JWT_SECRET", "another-but-also-long-enough-PQRSTUV");
    set_path("SERVER_KEY_FILE", "absent");
    assert_false(load());
    assert_problem("are both set and differ");
    assert_problem("SERVER_KEY_FILE: cannot read");
}

ALONE(test_second_names) {
    set("POSTGRES_DB_URL", "postgres://a@h/one");
    set("MONGO_DB_URL", "mongodb://h/kasma");
    write_file("env", "MONGODB_URL=mongodb://h/kasma\n"); /* the same twice is no problem */
    assert_true(load());
    assert_string_equal(config_str("DATABASE_URL"), "postgres://a@h/one");
    assert_string_equal(config_str("MONGODB_URL"), "mongodb://h/kasma");
}

ALONE(test_second_names_that_differ) {
    set("POSTGRES_DB_URL", "postgres://a@h/one");
    write_file("env", "DATABASE_URL=postgres://a@h/two\nREDIS_URL=redis://a\nREDIS_STORAGE_URL=redis://b\n");
    assert_false(load());
    assert_problem("POSTGRES_DB_URL and DATABASE_URL are both set and differ");
    assert_problem("REDIS_URL and REDIS_STORAGE_URL are both set and differ");
}

ALONE(test_all_problems_at_once) {
    set("KASMA_PROT", "1");
    set("PORT", "70000");
    set("MAIL_SECURE", "perhaps");
    set("JWT_SECRET", "short");
    set("SERVER_KEY", "not base64 at all");
    set("DATABASE_URL", "mysql://h/d");
    set("PASSWORD_ARGON2", "19456,2,4");
    set("LOG_LEVEL", "loud");
    set("JWT_EXPIRES_IN", "soon");
    set("MESSAGE_ENCRYPTION_KEY", "changeme-changeme-changeme");
    write_file("conf", "PROT = 1\nno equals sign\nMAIL_USER = \"open\n");
    assert_false(load());
    static const char *const expected[] = {
        "KASMA_PROT in the environment is no setting",
        "PORT must be a whole number from 0 to 65535",
        "MAIL_SECURE must be on or off",
        "JWT_SECRET must have at least 32 bytes",
        "SERVER_KEY must be base64",
        "DATABASE_URL must begin with postgresql://",
        "PASSWORD_ARGON2 must be",
        "LOG_LEVEL must be",
        "JWT_EXPIRES_IN must be",
        "MESSAGE_ENCRYPTION_KEY is a published value",
        "conf:1: PROT is no setting",
        "conf:2 is no NAME=value",
        "conf:3: the quotes of MAIL_USER do not end",
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) assert_problem(expected[i]);
    size_t lines = 0;
    for (size_t i = 0; i < problems.len; i++) lines += problems.data[i] == '\n';
    assert_int_equal(lines, sizeof expected / sizeof *expected);
}

/* Lists and addresses that would be taken and then match nothing. */
ALONE(test_lists_are_judged) {
    static const char *const cases[][4] = {
        {"CORS_ORIGINS", "must be origins", "https://shop.example/", "shop.example"},
        {"CORS_ORIGINS", "must be origins", "https://Shop.example", "https://a.example,*"},
        {"REDLOCK_NODES", "must be redis://", "http://10.0.0.1", "redis://10.0.0.1,10.0.0.2"},
        {"BOOTSTRAP_ADMIN_EMAIL", "must be an e-mail address", "ann", "ann@a.example, bob@a.example"},
        {"SCHEDULES", "must be <name>=<milliseconds>", "otp-cleanup", "otp-cleanup=1s"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t bad = 2; bad < 4; bad++) {
            char text[128];
            assert_true(snprintf(text, sizeof text, "%s %s", cases[i][0], cases[i][1]) > 0);
            set(cases[i][0], cases[i][bad]);
            buf_clear(&problems);
            assert_false(load());
            assert_problem(text);
            assert_int_equal(unsetenv(cases[i][0]), 0);
        }
    set("CORS_ORIGINS", "https://shop.example, http://localhost:3000");
    set("REDLOCK_NODES", "redis://10.0.0.1:6379,redis://:word@10.0.0.2,unix:///run/redis");
    set("BOOTSTRAP_ADMIN_EMAIL", "ann@a.example");
    set("SCHEDULES", "otp-cleanup=1000,user-purge=5000");
    assert_true(load());
}

ALONE(test_published_secrets) {
    static const char *const published[] = {
        "your-256-bit-secret-your-256-bit-secret", "please-CHANGE-ME-before-you-go-live-now",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "super-secret-key-change-in-production-ok"};
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        set("JWT_SECRET", published[i]);
        buf_clear(&problems);
        assert_false(load());
        assert_problem("JWT_SECRET is a published value");
    }
    set("JWT_SECRET", "pR7x-2fKq9_LmZ0sVt4bYw8cHd3eJgA1uN6");
    buf_clear(&problems);
    assert_true(load());
}

ALONE(test_environment_names) {
    set("NODE_ENV", "production");
    assert_true(load());
    assert_int_equal(config_env(), ENV_PRODUCTION);
    assert_false(config_complete(&problems));
    assert_problem("JWT_SECRET is not set");
    assert_problem("OTP_PEPPER is not set");
    assert_problem("DATABASE_SYSTEM_URL is not set");
}

ALONE(test_kasma_env_goes_first) {
    set("NODE_ENV", "production");
    write_file("conf", "KASMA_ENV = test\n");
    assert_true(load());
    assert_int_equal(config_env(), ENV_TEST);
}

ALONE(test_production_is_stricter) {
    set("KASMA_ENV", "production");
    set("PASSWORD_ARGON2", "64,1,1");
    set("SCHEDULES", "otp-cleanup=1000");
    assert_false(load());
    assert_problem("PASSWORD_ARGON2 must take at least");
    assert_problem("SCHEDULES is for development");
}

ALONE(test_server_keys) {
    static const char *const good[] = {
        "q83vEjRWeJASNFZ4kBI0VniQEjRWeJASNFZ4kBI0Vng=",
        "2:q83vEjRWeJASNFZ4kBI0VniQEjRWeJASNFZ4kBI0Vng=,1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="};
    static const char *const bad[] = {"q83vEjRWeJASNFZ4kBI0Vng=", "2:,1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
                                      "x:q83vEjRWeJASNFZ4kBI0VniQEjRWeJASNFZ4kBI0Vng="};
    for (size_t i = 0; i < 3; i++) {
        set("SERVER_KEY", bad[i]);
        assert_false(load());
        assert_problem("SERVER_KEY must be base64");
        buf_clear(&problems);
    }
    for (size_t i = 0; i < 2; i++) {
        set("SERVER_KEY", good[i]);
        assert_true(load());
    }
}

ALONE(test_reload_changes_what_may) {
    write_file("env", "LOG_LEVEL=warn\nPORT=1001\nHOST=10.0.0.1\n");
    char *argv[] = {(char *)"kasma", (char *)"--host=10.0.0.7", NULL};
    assert_true(load_words(2, argv));
    const char *held = config_str("LOG_LEVEL");
    assert_int_equal(log_get_level(), LOG_WARN);
    write_file("env", "LOG_LEVEL=error\nPORT=1002\n");
    assert_true(load());
    assert_string_equal(config_str("LOG_LEVEL"), "error");
    assert_int_equal(log_get_level(), LOG_ERROR);
    assert_int_equal(config_int("PORT"), 1001);
    assert_string_equal(config_str("HOST"), "10.0.0.7");
    assert_string_equal(held, "warn"); /* what was handed out stays good */
    write_file("env", "LOG_LEVEL=debug\nPORT=x\n");
    assert_false(load());
    assert_string_equal(config_str("LOG_LEVEL"), "error");
}

ALONE(test_passwords_of_urls_are_masked) {
    set("DATABASE_URL", "postgresql://kasma_app:s3cr3t@db.example:5432/kasma?password=other");
    assert_true(load());
    struct config_entry e;
    for (size_t i = 0; config_entry(i, &e); i++)
        if (strcmp(e.name, "DATABASE_URL") == 0)
            assert_string_equal(e.shown, "postgresql://kasma_app:********@db.example:5432/kasma");
}

static int make_dir(void **state) {
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    static const char *const files[] = {"env", "conf", "jwt"};
    for (size_t i = 0; i < 3; i++) {
        char path[128];
        if (snprintf(path, sizeof path, "%s/%s", dir, files[i]) < 0 || unlink(path) != 0) return -1;
    }
    return rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_tls_to_redis_is_refused_at_once),
        cmocka_unit_test(test_flag_forms),
        cmocka_unit_test(test_a_flag_without_its_value),
        cmocka_unit_test(test_file_forms),
        cmocka_unit_test(test_secret_from_a_file),
        cmocka_unit_test(test_secret_twice),
        cmocka_unit_test(test_second_names),
        cmocka_unit_test(test_second_names_that_differ),
        cmocka_unit_test(test_all_problems_at_once),
        cmocka_unit_test(test_lists_are_judged),
        cmocka_unit_test(test_published_secrets),
        cmocka_unit_test(test_environment_names),
        cmocka_unit_test(test_kasma_env_goes_first),
        cmocka_unit_test(test_production_is_stricter),
        cmocka_unit_test(test_server_keys),
        cmocka_unit_test(test_reload_changes_what_may),
        cmocka_unit_test(test_passwords_of_urls_are_masked),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
