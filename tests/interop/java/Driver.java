// Drives Apache's Java client and its admin tools; compiled against 4.9 and 5.x alike. Talks JSON lines.
//
//   java -cp DIR:JARS Driver NAMESRV
//
// Each line of standard input is a wish {"op": ...}, answered by one line {"reply": {"ok": true, ...}} or
// {"reply": {"ok": false, "error": ..., "code": ...}}. Consumed messages and results of floods come as {"event": {...}}.
// "id" names what a wish makes (a producer, a consumer) or uses. The wishes are the methods of this class.

import com.alibaba.fastjson.JSON;
import com.alibaba.fastjson.JSONArray;
import com.alibaba.fastjson.JSONObject;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.rocketmq.acl.common.AclClientRPCHook;
import org.apache.rocketmq.acl.common.SessionCredentials;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragely;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.RPCHook;
import org.apache.rocketmq.tools.command.MQAdminStartup;

public final class Driver {
    private static final long SEND_LIMIT_S = 30;
    private static final long FLOOD_PAUSE_MS = 5;
    private static final PrintStream OUT = System.out;

    private final String namesrv;
    private final Map<String, DefaultMQProducer> producers = new ConcurrentHashMap<>();
    private final Map<String, Runnable> stops = new ConcurrentHashMap<>();
    private final Map<String, DefaultLitePullConsumer> lites = new ConcurrentHashMap<>();
    private final Map<String, DefaultMQPullConsumer> pullers = new ConcurrentHashMap<>();

    private Driver(String namesrv) {
        this.namesrv = namesrv;
    }

    public static void main(String[] arguments) throws Exception {
        // Libraries that print must not break the lines.
        System.setOut(System.err);
        Driver driver = new Driver(arguments[0]);
        say("ready", true);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            say("reply", driver.answer(JSON.parseObject(line)));
        }
        driver.stops.values().forEach(Runnable::run);
        System.exit(0);
    }

    private static synchronized void say(String what, Object value) {
        JSONObject line = new JSONObject();
        line.put(what, value);
        OUT.println(line.toJSONString());
        OUT.flush();
    }

    private JSONObject answer(JSONObject wish) {
        JSONObject reply = new JSONObject();
        try {
            serve(wish, reply);
            reply.put("ok", true);
        } catch (Throwable thrown) {
            reply.put("ok", false);
            StringBuilder error = new StringBuilder();
            for (Throwable cause = thrown; cause != null; cause = cause.getCause()) {
                error.append(cause).append("; ");
                if (cause instanceof MQBrokerException) {
                    reply.put("code", ((MQBrokerException) cause).getResponseCode());
                } else if (cause instanceof MQClientException && !reply.containsKey("code")) {
                    reply.put("code", ((MQClientException) cause).getResponseCode());
                }
            }
            reply.put("error", error.toString());
            thrown.printStackTrace();
        }
        return reply;
    }

    private void serve(JSONObject wish, JSONObject reply) throws Throwable {
        switch (wish.getString("op")) {
            case "producer": producer(wish); break;
            case "send": send(wish, reply); break;
            case "batch": batch(wish, reply); break;
            case "flood": flood(wish); break;
            case "transaction": transaction(wish, reply); break;
            case "view": view(wish, reply); break;
            case "query": query(wish, reply); break;
            case "push": push(wish); break;
            case "lite": lite(wish); break;
            case "seek": seek(wish); break;
            case "poll": poll(wish, reply); break;
            case "pull": pull(wish, reply); break;
            case "request": request(wish, reply); break;
            case "stop": stops.remove(wish.getString("id")).run(); break;
            case "admin": admin(wish, reply); break;
            case "topic": topic(wish); break;
            case "routed": reply.put("routed", mqadmin("topicList").contains(wish.getString("topic"))); break;
            default: throw new IllegalArgumentException("no such wish: " + wish);
        }
    }

    // ------------------------------------------------------------------ producers

    private static RPCHook hook(JSONObject wish) {
        if (!wish.containsKey("accessKey")) {
            return null;
        }
        return new AclClientRPCHook(new SessionCredentials(wish.getString("accessKey"), wish.getString("secretKey")));
    }

    private void producer(JSONObject wish) throws Exception {
        String id = wish.getString("id");
        DefaultMQProducer producer;
        if (wish.getBooleanValue("transactional")) {
            TransactionMQProducer transactional = new TransactionMQProducer(wish.getString("group"));
            transactional.setTransactionListener(new TransactionListener() {
                @Override
                public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                    return LocalTransactionState.COMMIT_MESSAGE;
                }

                @Override
                public LocalTransactionState checkLocalTransaction(MessageExt message) {
                    return LocalTransactionState.COMMIT_MESSAGE;
                }
            });
            producer = transactional;
        } else {
            String group = wish.getString("group");
            producer = new DefaultMQProducer(group, hook(wish), wish.getBooleanValue("trace"), null);
        }
        producer.setNamesrvAddr(namesrv);
        producer.setInstanceName(id);
        if (wish.containsKey("namespace")) {
            producer.setNamespace(wish.getString("namespace"));
        }
        producer.setRetryTimesWhenSendFailed(wish.getIntValue("retries"));
        compression(producer, wish.getString("compression"));
        producer.start();
        producers.put(id, producer);
        stops.put(id, () -> {
            producers.remove(id);
            producer.shutdown();
        });
    }

    /** 5.x only: 4.9 is told by a system property. */
    private static void compression(DefaultMQProducer producer, String name) throws Exception {
        if (name == null) {
            return;
        }
        Class<?> type = Class.forName("org.apache.rocketmq.common.compression.CompressionType");
        Object value = type.getMethod("valueOf", String.class).invoke(null, name);
        producer.getClass().getMethod("setCompressType", type).invoke(producer, value);
    }

    private static Message message(JSONObject wish, String body) {
        Message message = new Message(wish.getString("topic"), body.getBytes(StandardCharsets.UTF_8));
        if (wish.containsKey("tags")) {
            message.setTags(wish.getString("tags"));
        }
        if (wish.containsKey("keys")) {
            message.setKeys(wish.getString("keys"));
        }
        message.setDelayTimeLevel(wish.getIntValue("delay"));
        JSONObject properties = wish.getJSONObject("properties");
        if (properties != null) {
            properties.forEach((name, value) -> message.putUserProperty(name, String.valueOf(value)));
        }
        return message;
    }

    private static void result(SendResult sent, JSONObject reply) {
        reply.put("status", sent.getSendStatus().name());
        reply.put("msgId", sent.getMsgId());
        reply.put("offsetMsgId", sent.getOffsetMsgId());
        reply.put("queue", sent.getMessageQueue().getQueueId());
        reply.put("offset", sent.getQueueOffset());
    }

    /** "how": sync, async, oneway; "queue": to that queue through a selector. */
    private void send(JSONObject wish, JSONObject reply) throws Throwable {
        DefaultMQProducer producer = producers.get(wish.getString("id"));
        Message message = message(wish, wish.getString("body"));
        String how = wish.containsKey("how") ? wish.getString("how") : "sync";
        if (how.equals("oneway")) {
            producer.sendOneway(message);
        } else if (how.equals("async")) {
            CompletableFuture<SendResult> future = new CompletableFuture<>();
            producer.send(message, new SendCallback() {
                @Override
                public void onSuccess(SendResult sent) {
                    future.complete(sent);
                }

                @Override
                public void onException(Throwable thrown) {
                    future.completeExceptionally(thrown);
                }
            });
            result(future.get(SEND_LIMIT_S, TimeUnit.SECONDS), reply);
        } else if (wish.containsKey("queue")) {
            result(producer.send(message, (queues, ignored, number) -> {
                List<MessageQueue> sorted = new ArrayList<>(queues);
                Collections.sort(sorted);
                return sorted.get((Integer) number);
            }, wish.getInteger("queue")), reply);
        } else {
            result(producer.send(message), reply);
        }
    }

    private void batch(JSONObject wish, JSONObject reply) throws Exception {
        List<Message> messages = new ArrayList<>();
        JSONArray bodies = wish.getJSONArray("bodies");
        for (int number = 0; number < bodies.size(); number++) {
            messages.add(message(wish, bodies.getString(number)));
        }
        result(producers.get(wish.getString("id")).send(messages), reply);
    }

    /** Send PREFIX-0, PREFIX-1, … to queue 0 until told to stop, every outcome an event; a failed one is sent again. */
    private void flood(JSONObject wish) {
        AtomicBoolean ended = new AtomicBoolean();
        Thread thread = new Thread(() -> {
            for (int number = 0; !ended.get(); number++) {
                JSONObject one = (JSONObject) wish.clone();
                String body = wish.getString("prefix") + "-" + number;
                one.put("body", body);
                one.put("queue", 0);
                for (boolean sent = false; !sent && !ended.get(); ) {
                    JSONObject outcome = new JSONObject();
                    outcome.put("sent", body);
                    try {
                        Thread.sleep(FLOOD_PAUSE_MS);
                        send(one, outcome);
                        sent = outcome.getString("status").equals("SEND_OK");
                    } catch (Throwable thrown) {
                        outcome.put("error", String.valueOf(thrown));
                    }
                    outcome.put("acknowledged", sent);
                    outcome.put("at", System.currentTimeMillis() / 1000.0);
                    say("event", outcome);
                }
            }
        });
        thread.start();
        stops.put(wish.getString("as"), () -> {
            ended.set(true);
            try {
                thread.join();
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
            }
        });
    }

    private void transaction(JSONObject wish, JSONObject reply) throws Exception {
        TransactionMQProducer producer = (TransactionMQProducer) producers.get(wish.getString("id"));
        result(producer.sendMessageInTransaction(message(wish, wish.getString("body")), null), reply);
    }

    private void request(JSONObject wish, JSONObject reply) throws Exception {
        Message answer = producers.get(wish.getString("id"))
            .request(message(wish, wish.getString("body")), wish.getLongValue("timeout"));
        reply.put("body", new String(answer.getBody(), StandardCharsets.UTF_8));
    }

    // ------------------------------------------------------------------ looking up

    private void view(JSONObject wish, JSONObject reply) throws Exception {
        DefaultMQProducer producer = producers.get(wish.getString("id"));
        reply.put("message", seen(producer.viewMessage(wish.getString("topic"), wish.getString("msgId"))));
    }

    private void query(JSONObject wish, JSONObject reply) throws Exception {
        DefaultMQProducer producer = producers.get(wish.getString("id"));
        long now = System.currentTimeMillis();
        reply.put("messages", seen(producer.queryMessage(
            wish.getString("topic"), wish.getString("key"), 32, now - 3_600_000, now + 60_000).getMessageList()));
    }

    private static JSONObject seen(MessageExt message) {
        JSONObject value = new JSONObject();
        value.put("body", new String(message.getBody(), StandardCharsets.UTF_8));
        value.put("topic", message.getTopic());
        value.put("tags", message.getTags());
        value.put("keys", message.getKeys());
        value.put("queue", message.getQueueId());
        value.put("offset", message.getQueueOffset());
        value.put("again", message.getReconsumeTimes());
        value.put("msgId", message.getMsgId());
        value.put("sysFlag", message.getSysFlag());
        value.put("properties", new TreeMap<>(message.getProperties()));
        value.put("at", System.currentTimeMillis() / 1000.0);
        return value;
    }

    private static JSONArray seen(List<MessageExt> messages) {
        JSONArray values = new JSONArray();
        messages.forEach(message -> values.add(seen(message)));
        return values;
    }

    // ------------------------------------------------------------------ consumers

    /** "fail": first (each message once), always; "orderly", "broadcast", "sql", "trace"; "from": a ConsumeFromWhere. */
    private void push(JSONObject wish) throws Exception {
        String id = wish.getString("id");
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(
            wish.getString("group"), hook(wish), new AllocateMessageQueueAveragely(), wish.getBooleanValue("trace"),
            null);
        consumer.setNamesrvAddr(namesrv);
        consumer.setInstanceName(id);
        if (wish.containsKey("namespace")) {
            consumer.setNamespace(wish.getString("namespace"));
        }
        if (wish.containsKey("maxReconsumeTimes")) {
            consumer.setMaxReconsumeTimes(wish.getIntValue("maxReconsumeTimes"));
        }
        if (wish.getBooleanValue("broadcast")) {
            consumer.setMessageModel(Enum.valueOf(consumer.getMessageModel().getDeclaringClass(), "BROADCASTING"));
        }
        String from = wish.containsKey("from") ? wish.getString("from") : "CONSUME_FROM_FIRST_OFFSET";
        consumer.setConsumeFromWhere(Enum.valueOf(consumer.getConsumeFromWhere().getDeclaringClass(), from));
        String expression = wish.containsKey("expression") ? wish.getString("expression") : "*";
        if (wish.getBooleanValue("sql")) {
            consumer.subscribe(wish.getString("topic"), MessageSelector.bySql(expression));
        } else {
            consumer.subscribe(wish.getString("topic"), expression);
        }
        listen(consumer, wish);
        consumer.start();
        stops.put(id, consumer::shutdown);
    }

    private void listen(DefaultMQPushConsumer consumer, JSONObject wish) {
        if (wish.getBooleanValue("orderly")) {
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) ->
                consumed(messages, wish) ? ConsumeOrderlyStatus.SUCCESS
                    : ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT);
        } else {
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                if (wish.containsKey("retryLevel")) {
                    context.setDelayLevelWhenNextConsume(wish.getIntValue("retryLevel"));
                }
                return consumed(messages, wish) ? ConsumeConcurrentlyStatus.CONSUME_SUCCESS
                    : ConsumeConcurrentlyStatus.RECONSUME_LATER;
            });
        }
    }

    private boolean consumed(List<MessageExt> messages, JSONObject wish) {
        boolean fine = true;
        for (MessageExt message : messages) {
            String fail = wish.getString("fail");
            boolean failed = "always".equals(fail) || "first".equals(fail) && message.getReconsumeTimes() == 0;
            JSONObject event = seen(message);
            event.put("consumer", wish.getString("id"));
            event.put("failed", failed);
            say("event", event);
            fine &= !failed;
            if (wish.containsKey("replyWith")) {
                replyTo(message, wish.getString("replyWith"));
            }
        }
        return fine;
    }

    private void replyTo(MessageExt message, String producer) {
        try {
            byte[] body = ("re: " + new String(message.getBody(), StandardCharsets.UTF_8)).getBytes(StandardCharsets.UTF_8);
            producers.get(producer).send(MessageUtil.createReplyMessage(message, body));
        } catch (Exception thrown) {
            thrown.printStackTrace();
        }
    }

    /** With "topic" and no "assign" it subscribes; else it is assigned every queue of the topic. */
    private void lite(JSONObject wish) throws Exception {
        String id = wish.getString("id");
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(wish.getString("group"), hook(wish));
        consumer.setNamesrvAddr(namesrv);
        consumer.setInstanceName(id);
        consumer.setAutoCommit(wish.getBooleanValue("autoCommit"));
        consumer.setConsumeFromWhere(
            Enum.valueOf(consumer.getConsumeFromWhere().getDeclaringClass(), "CONSUME_FROM_FIRST_OFFSET"));
        String topic = wish.getString("topic");
        if (!wish.getBooleanValue("assign")) {
            consumer.subscribe(topic, "*");
        }
        consumer.start();
        if (wish.getBooleanValue("assign")) {
            consumer.assign(consumer.fetchMessageQueues(topic));
        }
        lites.put(id, consumer);
        stops.put(id, () -> {
            lites.remove(id);
            consumer.shutdown();
        });
    }

    /** "to": begin, end, a number, or {"time": ms}; of every queue of the topic. */
    private void seek(JSONObject wish) throws Exception {
        DefaultLitePullConsumer consumer = lites.get(wish.getString("id"));
        for (MessageQueue queue : consumer.fetchMessageQueues(wish.getString("topic"))) {
            if (wish.containsKey("time")) {
                consumer.seek(queue, consumer.offsetForTimestamp(queue, wish.getLong("time")));
            } else if (wish.getString("to").equals("begin")) {
                consumer.seekToBegin(queue);
            } else if (wish.getString("to").equals("end")) {
                consumer.seekToEnd(queue);
            } else {
                consumer.seek(queue, wish.getLongValue("to"));
            }
        }
    }

    private void poll(JSONObject wish, JSONObject reply) throws Exception {
        DefaultLitePullConsumer consumer = lites.get(wish.getString("id"));
        reply.put("messages", seen(consumer.poll(wish.getLongValue("timeout"))));
        if (wish.getBooleanValue("commit")) {
            commit(consumer);
        }
    }

    @SuppressWarnings("deprecation")
    private static void commit(DefaultLitePullConsumer consumer) throws Exception {
        consumer.commitSync();
    }

    /** The old pull consumer: max, min, by time, fetched offset and one pull of a queue. */
    @SuppressWarnings("deprecation")
    private void pull(JSONObject wish, JSONObject reply) throws Exception {
        String id = wish.getString("id");
        DefaultMQPullConsumer consumer = pullers.get(id);
        if (consumer == null) {
            consumer = new DefaultMQPullConsumer(wish.getString("group"), hook(wish));
            consumer.setNamesrvAddr(namesrv);
            consumer.setInstanceName(id);
            consumer.start();
            pullers.put(id, consumer);
            stops.put(id, pullers.get(id)::shutdown);
        }
        MessageQueue wanted = null;
        for (MessageQueue queue : consumer.fetchSubscribeMessageQueues(wish.getString("topic"))) {
            wanted = queue.getQueueId() == wish.getIntValue("queue") ? queue : wanted;
        }
        reply.put("minOffset", consumer.minOffset(wanted));
        reply.put("maxOffset", consumer.maxOffset(wanted));
        reply.put("earliest", consumer.earliestMsgStoreTime(wanted));
        reply.put("stored", consumer.fetchConsumeOffset(wanted, true));
        if (wish.containsKey("time")) {
            reply.put("byTime", consumer.searchOffset(wanted, wish.getLongValue("time")));
        }
        MessageSelector selector = wish.containsKey("sql") ? MessageSelector.bySql(wish.getString("sql"))
            : MessageSelector.byTag(wish.containsKey("expression") ? wish.getString("expression") : "*");
        PullResult result = consumer.pull(wanted, selector, wish.getLongValue("offset"), 32);
        reply.put("pulled", result.getPullStatus().name());
        reply.put("next", result.getNextBeginOffset());
        reply.put("messages", seen(result.getMsgFoundList() == null ? List.of() : result.getMsgFoundList()));
        if (wish.containsKey("update")) {
            consumer.updateConsumeOffset(wanted, wish.getLongValue("update"));
            consumer.getOffsetStore().persist(wanted);
        }
    }

    // ------------------------------------------------------------------ mqadmin

    private void topic(JSONObject wish) throws Exception {
        String queues = wish.getString("queues");
        String said = mqadmin("updateTopic", "-c", wish.getString("cluster"), "-t", wish.getString("topic"),
            "-r", queues, "-w", queues);
        if (!said.contains("success")) {
            throw new IllegalStateException(said);
        }
    }

    private void admin(JSONObject wish, JSONObject reply) throws Exception {
        List<String> arguments = wish.getJSONArray("args").toJavaList(String.class);
        reply.put("text", mqadmin(arguments.toArray(new String[0])));
    }

    /** Run upstream's mqadmin in this process; what it prints. It signs with the keys of conf/tools.yml, if there. */
    private String mqadmin(String... arguments) throws Exception {
        System.setProperty("rocketmq.namesrv.addr", namesrv);
        ByteArrayOutputStream said = new ByteArrayOutputStream();
        PrintStream before = System.out;
        PrintStream errors = System.err;
        try (PrintStream captured = new PrintStream(said, true, "UTF-8")) {
            System.setOut(captured);
            System.setErr(captured);
            MQAdminStartup.main(arguments);
        } finally {
            System.setOut(before);
            System.setErr(errors);
        }
        return said.toString("UTF-8");
    }
}
