/* Reads lines "CA-FILE CHAIN-FILE [CRL-FILE]" and verifies each chain as a device
 * with Mbed TLS would. Prints one line per input: "ok" or "error -0x...".
 * cc verify_mbedtls.c -lmbedx509 -lmbedcrypto */
#include <stdio.h>
#include <mbedtls/x509_crl.h>
#include <mbedtls/x509_crt.h>

int main(void) {
    char line[3000], ca[1000], chain[1000], crl[1000];
    while (fgets(line, sizeof line, stdin)) {
        mbedtls_x509_crt anchors, certs;
        mbedtls_x509_crl list;
        uint32_t flags = 0;
        mbedtls_x509_crt_init(&anchors);
        mbedtls_x509_crt_init(&certs);
        mbedtls_x509_crl_init(&list);
        int n = sscanf(line, "%999s %999s %999s", ca, chain, crl);
        int ret = mbedtls_x509_crt_parse_file(&anchors, ca);
        if (ret == 0) ret = mbedtls_x509_crt_parse_file(&certs, chain);
        if (ret == 0 && n == 3) ret = mbedtls_x509_crl_parse_file(&list, crl);
        if (ret == 0) ret = mbedtls_x509_crt_verify(&certs, &anchors, n == 3 ? &list : NULL, NULL, &flags, NULL, NULL);
        if (ret == 0) printf("ok\n");
        else printf("error -0x%04x flags 0x%x\n", (unsigned)-ret, (unsigned)flags);
        mbedtls_x509_crt_free(&anchors);
        mbedtls_x509_crt_free(&certs);
        mbedtls_x509_crl_free(&list);
    }
    return 0;
}
