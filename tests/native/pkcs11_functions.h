/* Every function of PKCS#11 2.40 for pkcs11_shim.c, in the order of CK_FUNCTION_LIST, with its parameters and how they are
 * passed on. OWN has its own wrapper there; SLOT and SESSION need the token, by its slot or in a session; ANY does not. */

#define S CK_SESSION_HANDLE s
#define IN(p, n) CK_BYTE *p, CK_ULONG n
#define OUT(p, n) CK_BYTE *p, CK_ULONG *n
#define TEMPLATE(p, n) CK_ATTRIBUTE *p, CK_ULONG n

#define EACH(OWN, ANY, SLOT, SESSION) \
    OWN(C_Initialize) \
    ANY(C_Finalize, (void *r), (r)) \
    ANY(C_GetInfo, (CK_INFO * i), (i)) \
    OWN(C_GetFunctionList) \
    OWN(C_GetSlotList) \
    ANY(C_GetSlotInfo, (CK_SLOT_ID id, CK_SLOT_INFO * i), (id, i)) \
    OWN(C_GetTokenInfo) \
    SLOT(C_GetMechanismList, (CK_SLOT_ID id, CK_MECHANISM_TYPE * m, CK_ULONG * n), (id, m, n)) \
    SLOT(C_GetMechanismInfo, (CK_SLOT_ID id, CK_MECHANISM_TYPE m, CK_MECHANISM_INFO * i), (id, m, i)) \
    SLOT(C_InitToken, (CK_SLOT_ID id, IN(p, n), CK_UTF8CHAR * l), (id, p, n, l)) \
    SESSION(C_InitPIN, (S, IN(p, n)), (s, p, n)) \
    SESSION(C_SetPIN, (S, IN(o, on), IN(p, n)), (s, o, on, p, n)) \
    SLOT(C_OpenSession, (CK_SLOT_ID id, CK_FLAGS f, void *a, CK_NOTIFY c, CK_SESSION_HANDLE * h), (id, f, a, c, h)) \
    SESSION(C_CloseSession, (S), (s)) \
    SLOT(C_CloseAllSessions, (CK_SLOT_ID id), (id)) \
    SESSION(C_GetSessionInfo, (S, CK_SESSION_INFO * i), (s, i)) \
    SESSION(C_GetOperationState, (S, OUT(p, n)), (s, p, n)) \
    SESSION(C_SetOperationState, (S, IN(p, n), CK_OBJECT_HANDLE e, CK_OBJECT_HANDLE a), (s, p, n, e, a)) \
    SESSION(C_Login, (S, CK_USER_TYPE u, IN(p, n)), (s, u, p, n)) \
    SESSION(C_Logout, (S), (s)) \
    SESSION(C_CreateObject, (S, TEMPLATE(t, n), CK_OBJECT_HANDLE * o), (s, t, n, o)) \
    SESSION(C_CopyObject, (S, CK_OBJECT_HANDLE k, TEMPLATE(t, n), CK_OBJECT_HANDLE * o), (s, k, t, n, o)) \
    SESSION(C_DestroyObject, (S, CK_OBJECT_HANDLE o), (s, o)) \
    SESSION(C_GetObjectSize, (S, CK_OBJECT_HANDLE o, CK_ULONG * n), (s, o, n)) \
    OWN(C_GetAttributeValue) \
    SESSION(C_SetAttributeValue, (S, CK_OBJECT_HANDLE o, TEMPLATE(t, n)), (s, o, t, n)) \
    SESSION(C_FindObjectsInit, (S, TEMPLATE(t, n)), (s, t, n)) \
    SESSION(C_FindObjects, (S, CK_OBJECT_HANDLE * o, CK_ULONG m, CK_ULONG * n), (s, o, m, n)) \
    SESSION(C_FindObjectsFinal, (S), (s)) \
    SESSION(C_EncryptInit, (S, CK_MECHANISM * m, CK_OBJECT_HANDLE k), (s, m, k)) \
    SESSION(C_Encrypt, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_EncryptUpdate, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_EncryptFinal, (S, OUT(p, n)), (s, p, n)) \
    SESSION(C_DecryptInit, (S, CK_MECHANISM * m, CK_OBJECT_HANDLE k), (s, m, k)) \
    SESSION(C_Decrypt, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_DecryptUpdate, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_DecryptFinal, (S, OUT(p, n)), (s, p, n)) \
    SESSION(C_DigestInit, (S, CK_MECHANISM * m), (s, m)) \
    SESSION(C_Digest, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_DigestUpdate, (S, IN(p, n)), (s, p, n)) \
    SESSION(C_DigestKey, (S, CK_OBJECT_HANDLE k), (s, k)) \
    SESSION(C_DigestFinal, (S, OUT(p, n)), (s, p, n)) \
    OWN(C_SignInit) \
    OWN(C_Sign) \
    SESSION(C_SignUpdate, (S, IN(p, n)), (s, p, n)) \
    SESSION(C_SignFinal, (S, OUT(p, n)), (s, p, n)) \
    SESSION(C_SignRecoverInit, (S, CK_MECHANISM * m, CK_OBJECT_HANDLE k), (s, m, k)) \
    SESSION(C_SignRecover, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_VerifyInit, (S, CK_MECHANISM * m, CK_OBJECT_HANDLE k), (s, m, k)) \
    SESSION(C_Verify, (S, IN(d, dn), IN(p, n)), (s, d, dn, p, n)) \
    SESSION(C_VerifyUpdate, (S, IN(p, n)), (s, p, n)) \
    SESSION(C_VerifyFinal, (S, IN(p, n)), (s, p, n)) \
    SESSION(C_VerifyRecoverInit, (S, CK_MECHANISM * m, CK_OBJECT_HANDLE k), (s, m, k)) \
    SESSION(C_VerifyRecover, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_DigestEncryptUpdate, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_DecryptDigestUpdate, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_SignEncryptUpdate, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_DecryptVerifyUpdate, (S, IN(d, dn), OUT(p, n)), (s, d, dn, p, n)) \
    SESSION(C_GenerateKey, (S, CK_MECHANISM * m, TEMPLATE(t, n), CK_OBJECT_HANDLE * k), (s, m, t, n, k)) \
    SESSION(C_GenerateKeyPair, \
            (S, CK_MECHANISM * m, TEMPLATE(t, n), TEMPLATE(pt, pn), CK_OBJECT_HANDLE * k, CK_OBJECT_HANDLE * pk), \
            (s, m, t, n, pt, pn, k, pk)) \
    SESSION(C_WrapKey, (S, CK_MECHANISM * m, CK_OBJECT_HANDLE w, CK_OBJECT_HANDLE k, OUT(p, n)), (s, m, w, k, p, n)) \
    SESSION(C_UnwrapKey, (S, CK_MECHANISM * m, CK_OBJECT_HANDLE w, IN(p, n), TEMPLATE(t, tn), CK_OBJECT_HANDLE * k), \
            (s, m, w, p, n, t, tn, k)) \
    SESSION(C_DeriveKey, (S, CK_MECHANISM * m, CK_OBJECT_HANDLE b, TEMPLATE(t, n), CK_OBJECT_HANDLE * k), \
            (s, m, b, t, n, k)) \
    SESSION(C_SeedRandom, (S, IN(p, n)), (s, p, n)) \
    SESSION(C_GenerateRandom, (S, IN(p, n)), (s, p, n)) \
    SESSION(C_GetFunctionStatus, (S), (s)) \
    SESSION(C_CancelFunction, (S), (s)) \
    ANY(C_WaitForSlotEvent, (CK_FLAGS f, CK_SLOT_ID * id, void *r), (f, id, r))
