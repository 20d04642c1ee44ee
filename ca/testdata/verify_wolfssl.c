/* Reads lines "CA-FILE ISSUING-CA-FILE LEAF-FILE" and verifies each as a device
 * with wolfSSL would. Prints one line per input: "ok" or "error ...".
 * cc verify_wolfssl.c -lwolfssl */
#include <stdio.h>
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

int main(void) {
    char line[3000], root[1000], issuer[1000], leaf[1000];
    wolfSSL_Init();
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "%999s %999s %999s", root, issuer, leaf) != 3) return 2;
        WOLFSSL_CERT_MANAGER *cm = wolfSSL_CertManagerNew();
        int ret = wolfSSL_CertManagerLoadCA(cm, root, NULL);
        /* An issuing CA is loaded only if the root verifies it. */
        if (ret == WOLFSSL_SUCCESS) ret = wolfSSL_CertManagerVerify(cm, issuer, WOLFSSL_FILETYPE_PEM);
        if (ret == WOLFSSL_SUCCESS) ret = wolfSSL_CertManagerLoadCA(cm, issuer, NULL);
        if (ret == WOLFSSL_SUCCESS) ret = wolfSSL_CertManagerVerify(cm, leaf, WOLFSSL_FILETYPE_PEM);
        if (ret == WOLFSSL_SUCCESS) printf("ok\n");
        else printf("error %d\n", ret);
        wolfSSL_CertManagerFree(cm);
    }
    wolfSSL_Cleanup();
    return 0;
}
