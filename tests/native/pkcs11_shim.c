/* A PKCS#11 module that passes every call on to another one, and fails where a test says so.
 *
 * Beside each copy of this library lies a text file of the same name and ".conf" with lines "name=value":
 *   module=   the real module
 *   control=  the file that is shared with the test (tests/fakes/shim.py), mapped by everybody who uses this copy
 *   softhsm=  optional: the SOFTHSM2_CONF of this copy, so that two copies have two stores in one process
 *
 * What is planned for a function holds for every process; the first call that comes takes it. Nothing waits for ever:
 * a call that hangs is let go after LONGEST_HANG seconds.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <p11-kit/pkcs11.h>

#include "pkcs11_functions.h"

#define LONGEST_HANG 60
#define FUNCTIONS 68
#define LIES 8
#define SIGNATURES 8192
#define SIGNED_BYTES 96
#define UNTIL_LIFTED UINT32_MAX

/* --- what is shared with the test; fakes/shim.py declares the same, and both check the size -------------------------- */

enum { NEVER, BEFORE, AFTER };

struct plan {
    char name[32];
    char key[32]; /* of C_SignInit and C_Sign: the only key, by its label, for which they fail or hang; empty for all */
    uint64_t calls;
    uint64_t code;    /* the CKR_ to answer with */
    uint32_t fails;   /* BEFORE the real call, which is then not made, or AFTER it */
    uint32_t left;    /* for how many calls yet */
    uint32_t skip;    /* calls that are let pass first */
    uint32_t delay;   /* milliseconds before the real call */
    uint32_t hang;    /* BEFORE or AFTER the real call, until the test sets it back */
    uint32_t hanging; /* how many calls do */
};

struct signature {
    uint64_t mechanism;
    uint64_t told; /* the CKR_ that the caller got, though the signature was made */
    uint32_t size; /* of what was signed, of which the first bytes are kept */
    uint32_t done; /* set last */
    char label[32];
    uint8_t data[SIGNED_BYTES];
};

struct lie {
    uint64_t attribute;
    uint32_t active;
    uint32_t value;
};

struct control {
    uint64_t size;
    uint64_t absent;     /* the CKR_ for whoever uses the token, which is away while this is not 0 */
    uint64_t signatures; /* really made */
    uint64_t token_flags; /* said of every token besides its own */
    uint32_t lost;       /* counted up by the test: every session is closed behind its owner's back */
    uint32_t logged_out; /* counted up by the test */
    struct lie lies[LIES];
    struct plan plans[FUNCTIONS];
    struct signature log[SIGNATURES];
};

/* --- every function ------------------------------------------------------------------------------------------------- */

#define NUMBER(name, ...) N_##name,
enum function { EACH(NUMBER, NUMBER, NUMBER, NUMBER) COUNT };
_Static_assert(COUNT == FUNCTIONS, "the list has every function");

#define NAME(name, ...) #name,
static const char *const names[] = {EACH(NAME, NAME, NAME, NAME)};

enum need { NOTHING, THE_SLOT, A_SESSION };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over what follows */
static CK_FUNCTION_LIST *real;
static struct control *control;
static struct plan *plans[COUNT];
static char softhsm[4096];
static uint32_t lost_seen, logged_out_seen;

/* What each session is about to sign with; more of them than anybody here opens. */
static struct signing {
    CK_SESSION_HANDLE session;
    CK_MECHANISM_TYPE mechanism;
    char label[32];
} signings[64];
static unsigned signings_used;

/* --- faults --------------------------------------------------------------------------------------------------------- */

static void pause_for(long milliseconds) {
    struct timespec span = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&span, &span) != 0) {
    }
}

static void hang(struct plan *plan, uint32_t when) {
    __atomic_add_fetch(&plan->hanging, 1, __ATOMIC_SEQ_CST);
    for (int rest = LONGEST_HANG * 500; rest > 0 && __atomic_load_n(&plan->hang, __ATOMIC_SEQ_CST) == when; rest--)
        pause_for(2);
    __atomic_sub_fetch(&plan->hanging, 1, __ATOMIC_SEQ_CST);
}

static int take(uint32_t *count) { /* one off, unless it is 0 or has no end */
    uint32_t now = __atomic_load_n(count, __ATOMIC_SEQ_CST);
    while (now != 0 && now != UNTIL_LIFTED &&
           !__atomic_compare_exchange_n(count, &now, now - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return now != 0;
}

/* For every token, as a stranger would do it in this process. The lock is held. */
static void behind_their_backs(int log_out) {
    CK_SLOT_ID slots[64];
    CK_ULONG count = 64;
    if (real->C_GetSlotList(1, slots, &count) != CKR_OK)
        return;
    for (CK_ULONG i = 0; i < count; i++) {
        CK_SESSION_HANDLE session;
        if (!log_out)
            real->C_CloseAllSessions(slots[i]);
        else if (real->C_OpenSession(slots[i], CKF_SERIAL_SESSION, NULL, NULL, &session) == CKR_OK) {
            real->C_Logout(session);
            real->C_CloseSession(session);
        }
    }
}

static void act_on_the_state(void) {
    pthread_mutex_lock(&lock);
    uint32_t lost = __atomic_load_n(&control->lost, __ATOMIC_SEQ_CST);
    if (lost != lost_seen)
        behind_their_backs(0);
    lost_seen = lost;
    uint32_t logged_out = __atomic_load_n(&control->logged_out, __ATOMIC_SEQ_CST);
    if (logged_out != logged_out_seen)
        behind_their_backs(1);
    logged_out_seen = logged_out;
    pthread_mutex_unlock(&lock);
}

static int meant(const struct plan *plan, const char *key) {
    return plan->key[0] == '\0' || (key != NULL && strncmp(plan->key, key, sizeof plan->key) == 0);
}

/* CKR_OK when the real call is to be made; then *later is what is answered after it, if that is to fail. */
static CK_RV begin(enum function number, enum need need, const char *key, CK_RV *later) {
    struct plan *plan = plans[number];
    *later = CKR_OK;
    __atomic_add_fetch(&plan->calls, 1, __ATOMIC_SEQ_CST);
    if (plan->delay != 0)
        pause_for(plan->delay);
    if (__atomic_load_n(&plan->hang, __ATOMIC_SEQ_CST) == BEFORE && meant(plan, key))
        hang(plan, BEFORE);
    act_on_the_state();
    uint64_t absent = __atomic_load_n(&control->absent, __ATOMIC_SEQ_CST);
    if (absent != 0 && need != NOTHING)
        return need == THE_SLOT ? CKR_TOKEN_NOT_PRESENT : absent;
    uint32_t fails = __atomic_load_n(&plan->fails, __ATOMIC_SEQ_CST);
    if (fails == NEVER || !meant(plan, key) || take(&plan->skip) || !take(&plan->left))
        return CKR_OK;
    if (fails == BEFORE)
        return plan->code;
    *later = plan->code;
    return CKR_OK;
}

static CK_RV end(enum function number, const char *key, CK_RV result, CK_RV later) {
    struct plan *plan = plans[number];
    if (__atomic_load_n(&plan->hang, __ATOMIC_SEQ_CST) == AFTER && meant(plan, key))
        hang(plan, AFTER);
    return result == CKR_OK && later != CKR_OK ? later : result;
}

/* --- wrappers ------------------------------------------------------------------------------------------------------- */

#define WRAP(need, name, parameters, arguments) \
    static CK_RV shim_##name parameters { \
        CK_RV later, result = begin(N_##name, need, NULL, &later); \
        return result != CKR_OK ? result : end(N_##name, NULL, real->name arguments, later); \
    }
#define WRAP_NOTHING(name)
#define WRAP_ANY(name, parameters, arguments) WRAP(NOTHING, name, parameters, arguments)
#define WRAP_SLOT(name, parameters, arguments) WRAP(THE_SLOT, name, parameters, arguments)
#define WRAP_SESSION(name, parameters, arguments) WRAP(A_SESSION, name, parameters, arguments)
EACH(WRAP_NOTHING, WRAP_ANY, WRAP_SLOT, WRAP_SESSION)

static CK_RV initialize(void *arguments) {
    if (softhsm[0] == '\0')
        return real->C_Initialize(arguments);
    /* The environment is the whole process's, and so is this lock: other copies of this library wait here. */
    flockfile(stderr);
    const char *found = getenv("SOFTHSM2_CONF");
    char *before = found != NULL ? strdup(found) : NULL;
    setenv("SOFTHSM2_CONF", softhsm, 1);
    CK_RV result = real->C_Initialize(arguments);
    if (before != NULL)
        setenv("SOFTHSM2_CONF", before, 1);
    else
        unsetenv("SOFTHSM2_CONF");
    free(before);
    funlockfile(stderr);
    return result;
}

static CK_RV shim_C_Initialize(void *arguments) {
    CK_RV later, result = begin(N_C_Initialize, NOTHING, NULL, &later);
    return result != CKR_OK ? result : end(N_C_Initialize, NULL, initialize(arguments), later);
}

static CK_RV shim_C_GetSlotList(CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count) {
    CK_RV later, result = begin(N_C_GetSlotList, NOTHING, NULL, &later);
    if (result != CKR_OK)
        return result;
    if (present && count != NULL && __atomic_load_n(&control->absent, __ATOMIC_SEQ_CST) != 0) {
        *count = 0;
        return end(N_C_GetSlotList, NULL, CKR_OK, later);
    }
    return end(N_C_GetSlotList, NULL, real->C_GetSlotList(present, slots, count), later);
}

static CK_RV shim_C_GetTokenInfo(CK_SLOT_ID id, CK_TOKEN_INFO *info) {
    CK_RV later, result = begin(N_C_GetTokenInfo, THE_SLOT, NULL, &later);
    if (result != CKR_OK)
        return result;
    result = real->C_GetTokenInfo(id, info);
    if (result == CKR_OK)
        info->flags |= control->token_flags;
    return end(N_C_GetTokenInfo, NULL, result, later);
}

static CK_RV shim_C_GetAttributeValue(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *asked, CK_ULONG count) {
    CK_RV later, result = begin(N_C_GetAttributeValue, A_SESSION, NULL, &later);
    if (result != CKR_OK)
        return result;
    result = real->C_GetAttributeValue(s, object, asked, count);
    for (CK_ULONG i = 0; i < count; i++)
        for (int j = 0; j < LIES; j++)
            if (control->lies[j].active && control->lies[j].attribute == asked[i].type && asked[i].pValue != NULL &&
                asked[i].ulValueLen == sizeof(CK_BBOOL))
                *(CK_BBOOL *)asked[i].pValue = (CK_BBOOL)control->lies[j].value;
    return end(N_C_GetAttributeValue, NULL, result, later);
}

static void label_of(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, char label[32]) {
    CK_ATTRIBUTE asked = {CKA_LABEL, label, 31};
    memset(label, 0, 32);
    if (real->C_GetAttributeValue(session, key, &asked, 1) != CKR_OK)
        memset(label, 0, 32);
}

static void remember(const struct signing *it) {
    pthread_mutex_lock(&lock);
    unsigned place = 0;
    while (place < 64 && signings[place].session != it->session)
        place++;
    signings[place < 64 ? place : signings_used++ % 64] = *it;
    pthread_mutex_unlock(&lock);
}

static struct signing remembered(CK_SESSION_HANDLE session) {
    struct signing it = {session, 0, ""};
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < 64; i++)
        if (signings[i].session == session)
            it = signings[i];
    pthread_mutex_unlock(&lock);
    return it;
}

static void record(const struct signing *it, const CK_BYTE *data, CK_ULONG size, CK_RV told) {
    uint64_t index = __atomic_fetch_add(&control->signatures, 1, __ATOMIC_SEQ_CST);
    if (index >= SIGNATURES)
        return; /* the test sees by the count that the log is not whole */
    struct signature *made = &control->log[index];
    made->mechanism = it->mechanism;
    memcpy(made->label, it->label, sizeof made->label);
    made->size = (uint32_t)size;
    made->told = told;
    memcpy(made->data, data, size < SIGNED_BYTES ? size : SIGNED_BYTES);
    __atomic_store_n(&made->done, 1, __ATOMIC_SEQ_CST);
}

static CK_RV shim_C_SignInit(CK_SESSION_HANDLE s, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    struct signing it = {s, mechanism != NULL ? mechanism->mechanism : 0, ""};
    label_of(s, key, it.label);
    CK_RV later, result = begin(N_C_SignInit, A_SESSION, it.label, &later);
    if (result != CKR_OK)
        return result;
    result = real->C_SignInit(s, mechanism, key);
    if (result == CKR_OK)
        remember(&it);
    return end(N_C_SignInit, it.label, result, later);
}

static CK_RV shim_C_Sign(CK_SESSION_HANDLE s, CK_BYTE *data, CK_ULONG size, CK_BYTE *signature, CK_ULONG *length) {
    if (signature == NULL) /* how long it would be: no signature is asked for */
        return real->C_Sign(s, data, size, signature, length);
    struct signing it = remembered(s);
    CK_RV later, result = begin(N_C_Sign, A_SESSION, it.label, &later);
    if (result != CKR_OK) {
        /* C_Sign ends the operation however it fails, but for this code (PKCS#11 section 5.13.2). SoftHSM ends it when
         * it is asked for several parts where there can be one only. */
        if (result != CKR_BUFFER_TOO_SMALL)
            real->C_SignUpdate(s, data, size);
        return result;
    }
    result = real->C_Sign(s, data, size, signature, length);
    if (result == CKR_OK)
        record(&it, data, size, later);
    return end(N_C_Sign, it.label, result, later);
}

/* --- loading -------------------------------------------------------------------------------------------------------- */

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list);

#define shim_C_GetFunctionList C_GetFunctionList
#define MEMBER(name, ...) .name = shim_##name,
static CK_FUNCTION_LIST functions = {.version = {2, 40}, EACH(MEMBER, MEMBER, MEMBER, MEMBER)};

static int failed(const char *what, const char *which) {
    fprintf(stderr, "pkcs11_shim: %s: %s\n", what, which);
    return 0;
}

static int map(const char *path) {
    int file = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (file < 0)
        return failed("the control file cannot be opened", path);
    if (fstat(file, &status) != 0 || (uint64_t)status.st_size != sizeof(struct control)) {
        close(file);
        return failed("the control file has another size than this library expects", path);
    }
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED)
        return failed("the control file cannot be mapped", path);
    control = mapped;
    lost_seen = control->lost;
    logged_out_seen = control->logged_out;
    for (int i = 0; i < COUNT; i++)
        for (int j = 0; j < COUNT; j++)
            if (strncmp(names[i], control->plans[j].name, sizeof control->plans[j].name) == 0)
                plans[i] = &control->plans[j];
    for (int i = 0; i < COUNT; i++)
        if (plans[i] == NULL)
            return failed("the control file lacks a function", names[i]);
    return 1;
}

static int forward(const char *path) {
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL)
        return failed("the real module cannot be loaded", dlerror());
    CK_C_GetFunctionList list;
    *(void **)&list = dlsym(module, "C_GetFunctionList");
    if (list == NULL || list(&real) != CKR_OK)
        return failed("the real module gives no functions", path);
    return 1;
}

static int load(void) {
    Dl_info self;
    char line[4200], module[4096] = "", shared[4096] = "";
    if (dladdr((void *)&functions, &self) == 0)
        return failed("it does not know where it is", "dladdr");
    if (snprintf(line, sizeof line, "%s.conf", self.dli_fname) >= (int)sizeof line)
        return failed("its path is too long", self.dli_fname);
    FILE *conf = fopen(line, "re");
    if (conf == NULL)
        return failed("there is no such file", line);
    while (fgets(line, sizeof line, conf) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        sscanf(line, "module=%4095[^\n]", module);
        sscanf(line, "control=%4095[^\n]", shared);
        sscanf(line, "softhsm=%4095[^\n]", softhsm);
    }
    fclose(conf);
    return map(shared) && forward(module);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    static int loaded;
    if (list == NULL)
        return CKR_ARGUMENTS_BAD;
    pthread_mutex_lock(&lock);
    if (!loaded)
        loaded = load();
    pthread_mutex_unlock(&lock);
    *list = &functions;
    return loaded ? CKR_OK : CKR_GENERAL_ERROR;
}
