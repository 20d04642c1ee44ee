package imprint;

import com.hivemq.embedded.EmbeddedExtension;
import com.hivemq.embedded.EmbeddedHiveMQ;
import com.hivemq.extension.sdk.api.ExtensionMain;
import com.hivemq.extension.sdk.api.auth.SimpleAuthenticator;
import com.hivemq.extension.sdk.api.auth.parameter.SimpleAuthInput;
import com.hivemq.extension.sdk.api.auth.parameter.SimpleAuthOutput;
import com.hivemq.extension.sdk.api.auth.parameter.TopicPermission;
import com.hivemq.extension.sdk.api.packets.auth.DefaultAuthorizationBehaviour;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartOutput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopOutput;
import com.hivemq.extension.sdk.api.services.Services;
import com.hivemq.extension.sdk.api.services.builder.Builders;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import javax.crypto.SecretKeyFactory;
import javax.crypto.spec.PBEKeySpec;
import javax.xml.parsers.DocumentBuilderFactory;
import org.w3c.dom.Element;
import org.w3c.dom.NodeList;

/**
 * Runs HiveMQ with hivemq.xml, and gives each client the permissions that
 * credentials.xml has for it, as the manual of the File RBAC extension says. The
 * broker matches them itself. Arguments: a directory with both files, and an empty one.
 */
public final class Broker implements ExtensionMain, SimpleAuthenticator {
    private record User(String password, List<String> roles) {}

    private final Map<String, User> users = new HashMap<>();
    private final Map<String, List<Element>> roles = new HashMap<>();

    public static void main(String[] args) throws Exception {
        Path files = Path.of(args[0]), home = Path.of(args[1]);
        for (String dir : List.of("conf", "data", "extensions")) {
            Files.createDirectories(home.resolve(dir));
        }
        Files.copy(files.resolve("hivemq.xml"), home.resolve("conf/config.xml"));
        Broker main = new Broker(files.resolve("credentials.xml"));
        EmbeddedHiveMQ broker = EmbeddedHiveMQ.builder()
                .withConfigurationFolder(home.resolve("conf"))
                .withDataFolder(home.resolve("data"))
                .withExtensionsFolder(home.resolve("extensions"))
                .withEmbeddedExtension(EmbeddedExtension.builder()
                        .withId("imprint-test").withName("imprint-test").withVersion("1").withAuthor("imprint")
                        .withPriority(0).withStartPriority(1000).withExtensionMain(main).build())
                .build();
        broker.start().get();
        System.out.println("imprint: the broker serves");
        Thread.currentThread().join();
    }

    private Broker(Path credentials) throws Exception {
        Element doc = DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(credentials.toFile()).getDocumentElement();
        for (Element u : elements(doc, "user")) {
            List<String> ids = new ArrayList<>();
            for (Element id : elements(u, "id")) {
                ids.add(id.getTextContent());
            }
            users.put(text(u, "name", null), new User(text(u, "password", null), ids));
        }
        for (Element r : elements(doc, "role")) {
            roles.put(text(r, "id", null), elements(r, "permission"));
        }
    }

    private static List<Element> elements(Element parent, String name) {
        NodeList all = parent.getElementsByTagName(name);
        List<Element> out = new ArrayList<>();
        for (int i = 0; i < all.getLength(); i++) {
            out.add((Element) all.item(i));
        }
        return out;
    }

    private static String text(Element parent, String name, String otherwise) {
        List<Element> all = elements(parent, name);
        return all.isEmpty() ? otherwise : all.get(0).getTextContent();
    }

    @Override
    public void extensionStart(ExtensionStartInput in, ExtensionStartOutput out) {
        Services.securityRegistry().setAuthenticatorProvider(x -> this);
    }

    @Override
    public void extensionStop(ExtensionStopInput in, ExtensionStopOutput out) {}

    @Override
    public void onConnect(SimpleAuthInput in, SimpleAuthOutput out) {
        String name = in.getConnectPacket().getUserName().orElse("");
        User user = users.get(name);
        if (name.contains("#") || name.contains("+") || user == null || in.getConnectPacket().getPassword().isEmpty()
                || !right(user.password(), StandardCharsets.UTF_8.decode(in.getConnectPacket().getPassword().get()).toString())) {
            out.failAuthentication();
            return;
        }
        for (String id : user.roles()) {
            for (Element p : roles.get(id)) {
                out.getDefaultPermissions().add(Builders.topicPermission()
                        .topicFilter(text(p, "topic", null))
                        .type(TopicPermission.PermissionType.ALLOW)
                        .activity(TopicPermission.MqttActivity.valueOf(text(p, "activity", "ALL")))
                        .qos(TopicPermission.Qos.valueOf(text(p, "qos", "ALL")))
                        .retain(TopicPermission.Retain.valueOf(text(p, "retain", "ALL")))
                        .sharedSubscription(TopicPermission.SharedSubscription.valueOf(text(p, "shared-subscription", "ALL")))
                        .sharedGroup(text(p, "shared-group", "#"))
                        .build());
            }
        }
        out.getDefaultPermissions().setDefaultBehaviour(DefaultAuthorizationBehaviour.DENY);
        out.authenticateSuccessfully();
    }

    private static boolean right(String stored, String password) {
        try {
            String[] part = stored.split(":");
            byte[] salt = Base64.getDecoder().decode(part[0]), hash = Base64.getDecoder().decode(part[2]);
            if (password.isEmpty()) {
                return false;
            }
            PBEKeySpec spec = new PBEKeySpec(password.toCharArray(), salt, Integer.parseInt(part[1]), 512);
            return MessageDigest.isEqual(hash, SecretKeyFactory.getInstance("PBKDF2WithHmacSHA512").generateSecret(spec).getEncoded());
        } catch (Exception e) {
            return false;
        }
    }
}
