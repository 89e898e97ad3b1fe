import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.cert.CertPathBuilder;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.PKIXBuilderParameters;
import java.security.cert.PKIXRevocationChecker;
import java.security.cert.PKIXRevocationChecker.Option;
import java.security.cert.X509CertSelector;
import java.util.EnumSet;
import java.util.Set;
import javax.net.ssl.CertPathTrustManagerParameters;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;

/** A TLS server that refuses revoked clients: Relying ocsp|crl|chain PKCS12 PASSWORD ROOTS. It prints its port first. */
public final class Relying {
    static final Set<Option> BY_OCSP = EnumSet.of(Option.ONLY_END_ENTITY, Option.NO_FALLBACK);
    static final Set<Option> BY_CRL = EnumSet.of(Option.ONLY_END_ENTITY, Option.NO_FALLBACK, Option.PREFER_CRLS);
    static final Set<Option> CHAIN_BY_CRL = EnumSet.of(Option.NO_FALLBACK, Option.PREFER_CRLS);

    static TrustManager[] trusting(KeyStore roots, Set<Option> options) throws GeneralSecurityException {
        var checker = (PKIXRevocationChecker) CertPathBuilder.getInstance("PKIX").getRevocationChecker();
        checker.setOptions(options);
        var parameters = new PKIXBuilderParameters(roots, new X509CertSelector());
        parameters.addCertPathChecker(checker);
        var factory = TrustManagerFactory.getInstance("PKIX");
        factory.init(new CertPathTrustManagerParameters(parameters));
        return factory.getTrustManagers();
    }

    static KeyStore anchors(String file) throws GeneralSecurityException, IOException {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream in = new FileInputStream(file)) {
            for (Certificate root : CertificateFactory.getInstance("X.509").generateCertificates(in)) {
                store.setCertificateEntry("root-" + store.size(), root);
            }
        }
        return store;
    }

    static SSLContext context(String[] arguments) throws GeneralSecurityException, IOException {
        KeyStore own = KeyStore.getInstance("PKCS12");
        char[] password = arguments[2].toCharArray();
        try (InputStream in = new FileInputStream(arguments[1])) {
            own.load(in, password);
        }
        KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
        keys.init(own, password);
        SSLContext context = SSLContext.getInstance("TLS");
        Set<Option> options = switch (arguments[0]) {
            case "crl" -> BY_CRL;
            case "chain" -> CHAIN_BY_CRL;
            default -> BY_OCSP;
        };
        context.init(keys.getKeyManagers(), trusting(anchors(arguments[3]), options), null);
        return context;
    }

    static void answer(SSLServerSocket listener) throws IOException {
        try (SSLSocket connection = (SSLSocket) listener.accept()) {
            try {
                connection.startHandshake();
                connection.getInputStream().read(new byte[4096]);
                byte[] answer = "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n".getBytes();
                connection.getOutputStream().write(answer);
            } catch (IOException refused) {
                for (Throwable cause = refused; cause != null; cause = cause.getCause()) {
                    System.err.println(cause);
                }
            }
        }
    }

    public static void main(String[] arguments) throws GeneralSecurityException, IOException {
        InetAddress loopback = InetAddress.getByName("127.0.0.1");
        var factory = context(arguments).getServerSocketFactory();
        try (var listener = (SSLServerSocket) factory.createServerSocket(0, 8, loopback)) {
            listener.setNeedClientAuth(true);
            System.out.println(listener.getLocalPort());
            while (true) {
                answer(listener);
            }
        }
    }
}
