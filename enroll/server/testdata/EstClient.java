import java.io.*;
import java.nio.file.*;
import java.security.*;
import java.security.cert.*;
import java.security.spec.*;
import java.util.*;
import org.bouncycastle.asn1.x500.X500Name;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.est.*;
import org.bouncycastle.est.jcajce.*;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;
import org.bouncycastle.util.Store;

/** Enrolls one device with Bouncy Castle's EST client: host:port root.pem device token. */
public class EstClient {
    public static void main(String[] a) throws Exception {
        Security.addProvider(new BouncyCastleProvider());
        java.security.cert.X509Certificate root;
        try (InputStream in = Files.newInputStream(Paths.get(a[1]))) {
            root = (java.security.cert.X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(in);
        }
        Set<TrustAnchor> anchors = Collections.singleton(new TrustAnchor(root, null));
        JsseESTServiceBuilder b = new JsseESTServiceBuilder(a[0], JcaJceUtils.getCertPathTrustManager(anchors, null));
        b.withTimeout(10000);
        ESTService est = b.build();
        int n = 0;
        CACertsResponse ca = est.getCACerts();
        for (X509CertificateHolder ignored : ca.getCertificateStore().getMatches(null)) n++;
        System.out.println("cacerts " + n);
        CSRRequestResponse attrs = est.getCSRAttributes();
        System.out.println("csrattrs " + (attrs.hasAttributesResponse() ? attrs.getAttributesResponse().getRequirements().size() : 0));
        KeyPairGenerator g = KeyPairGenerator.getInstance("EC");
        g.initialize(new ECGenParameterSpec("secp256r1"));
        KeyPair kp = g.generateKeyPair();
        org.bouncycastle.pkcs.PKCS10CertificationRequest csr =
            new JcaPKCS10CertificationRequestBuilder(new X500Name("CN=" + a[2]), kp.getPublic())
                .build(new JcaContentSignerBuilder("SHA256withECDSA").build(kp.getPrivate()));
        ESTAuth auth = new JcaHttpAuthBuilder(a[2], a[3].toCharArray()).setProvider("BC").build();
        EnrollmentResponse r = est.simpleEnroll(false, csr, auth);
        Store<X509CertificateHolder> got = r.getStore();
        for (X509CertificateHolder h : got.getMatches(null)) System.out.println("certificate " + h.getSubject());
    }
}
