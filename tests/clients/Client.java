// The Java client: InetAddress for names, JNDI's DNS provider for SRV, NIO for the connects. Run as a single source file.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.HttpURLConnection;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.UnknownHostException;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.util.ArrayList;
import java.util.List;

public class Client {
    public static void main(String[] args) throws Exception {
        StringBuilder out = new StringBuilder("{\"client\":\"java\"");
        if (!args[0].equals("-")) {
            out.append(",\"names\":{");
            String separator = "";
            for (String name : args[0].split(",")) {
                out.append(separator).append(quote(name)).append(":[").append(lookUp(name)).append("]");
                separator = ",";
            }
            out.append("}");
        }
        if (!args[1].equals("-")) {
            out.append(",\"http\":").append(quote(fetch(args[1])));
        }
        if (!args[2].equals("-")) {
            out.append(",\"refused\":").append(quote(errnoOf(args[2])));
        }
        if (!args[3].equals("-")) {
            out.append(",\"connects_ms\":").append(connectMany(args[3]));
        }
        System.out.println(out.append("}"));
    }

    static String quote(String text) {
        return "\"" + text.replace("\\", "\\\\").replace("\"", "\\\"") + "\"";
    }

    static String lookUp(String name) {
        if (name.startsWith("srv:")) {
            return quote("!no SRV in the standard library");
        }
        try {
            if (name.startsWith("ptr:")) {
                return quote(InetAddress.getByName(name.substring(4)).getCanonicalHostName());
            }
            List<String> found = new ArrayList<>();
            for (InetAddress address : InetAddress.getAllByName(name)) {
                found.add(quote(address.getHostAddress()));
            }
            return String.join(",", found);
        } catch (UnknownHostException error) {
            return quote("!NXDOMAIN");
        }
    }

    static String fetch(String url) throws Exception {
        HttpURLConnection connection = (HttpURLConnection) URI.create(url).toURL().openConnection();
        try (BufferedReader reader = new BufferedReader(new InputStreamReader(connection.getInputStream()))) {
            return reader.readLine();
        }
    }

    static InetSocketAddress address(String text) throws Exception {
        int at = text.lastIndexOf(':');
        String host = text.substring(0, at).replaceAll("[\\[\\]]", "");
        return new InetSocketAddress(InetAddress.getByName(host), Integer.parseInt(text.substring(at + 1)));
    }

    static String errnoOf(String text) throws Exception {
        try (Socket socket = new Socket()) {
            socket.connect(address(text), 20_000);
            return "connected";
        } catch (java.net.ConnectException error) {
            return error.getMessage().contains("refused") ? "ECONNREFUSED" : error.getMessage();
        }
    }

    static double connectMany(String text) throws Exception {
        InetSocketAddress to = address(text);
        Selector selector = Selector.open();
        long started = System.nanoTime();
        for (int i = 0; i < 20; i++) {
            SocketChannel channel = SocketChannel.open();
            channel.configureBlocking(false);
            channel.connect(to);
            channel.register(selector, SelectionKey.OP_CONNECT);
        }
        int open = 0;
        while (open < 20) {
            selector.select(20_000);
            for (SelectionKey key : selector.selectedKeys()) {
                ((SocketChannel) key.channel()).finishConnect();
                key.cancel();
                open++;
            }
            selector.selectedKeys().clear();
        }
        return (System.nanoTime() - started) / 1e6;
    }
}
