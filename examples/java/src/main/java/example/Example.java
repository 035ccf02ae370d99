package example;

import static java.util.concurrent.TimeUnit.MILLISECONDS;
import static java.util.concurrent.TimeUnit.SECONDS;

import com.generation.v1.CreateTaskRequest;
import com.generation.v1.GenerationServiceGrpc;
import com.generation.v1.GenerationServiceGrpc.GenerationServiceBlockingV2Stub;
import com.generation.v1.GenerationTask;
import com.generation.v1.Imagen4Params;
import com.generation.v1.KieParams;
import com.generation.v1.ProviderParams;
import com.generation.v1.TaskStatus;
import com.generation.v1.UploadFileRequest;
import com.generation.v1.UploadFileResponse;
import com.generation.v1.UploadMetadata;
import com.generation.v1.UploadedFile;
import com.generation.v1.WatchTaskRequest;
import com.generation.v1.WatchTaskResponse;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.Duration;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.BadRequest.FieldViolation;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.MetadataUtils;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.DigestInputStream;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeoutException;

/**
 * A client of the generation service in Java. It creates a task, watches it until it ends, uploads a file, and reads the
 * details of an error.
 *
 * <p>{@code ADDRESS=127.0.0.1:50051 TOKEN=... java -jar target/example.jar [FILE]}
 */
public final class Example {
  private static final String DOMAIN = "generation.v1";
  private static final long CALL_SECONDS = 30; // CreateTask waits up to 10 s for the provider
  private static final long UPLOAD_SECONDS = 300;
  private static final int CHUNK_BYTES = 1 << 20;
  private static final long FIRST_DELAY_MS = 100;
  private static final long MAX_DELAY_MS = 5_000;
  // Three times the server's WATCH_HEARTBEAT_SECONDS.
  private static final long SILENCE_MS = (long) (3_000 * Double.parseDouble(env("HEARTBEAT_SECONDS", "20")));

  // Lets gRPC retry calls that end as UNAVAILABLE. That is safe for every method: CreateTask has a request_id.
  private static final Map<String, ?> SERVICE_CONFIG =
      Map.of(
          "methodConfig",
          List.of(
              Map.of(
                  "name", List.of(Map.of("service", GenerationServiceGrpc.SERVICE_NAME)),
                  "retryPolicy",
                      Map.of(
                          "maxAttempts", 5.0,
                          "initialBackoff", "0.2s",
                          "maxBackoff", "5s",
                          "backoffMultiplier", 2.0,
                          "retryableStatusCodes", List.of("UNAVAILABLE")))));

  private final GenerationServiceBlockingV2Stub stub;

  private Example(GenerationServiceBlockingV2Stub stub) {
    this.stub = stub;
  }

  public static void main(String[] arguments) throws Exception {
    // For TLS: TlsChannelCredentials.create() instead of InsecureChannelCredentials.create().
    ManagedChannel channel =
        Grpc.newChannelBuilder(env("ADDRESS", "127.0.0.1:50051"), InsecureChannelCredentials.create())
            .keepAliveTime(30, SECONDS)
            .keepAliveTimeout(10, SECONDS)
            .defaultServiceConfig(SERVICE_CONFIG)
            .build();
    Metadata headers = new Metadata();
    String token = env("TOKEN", "");
    if (!token.isEmpty()) {
      headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    }
    var stub =
        GenerationServiceGrpc.newBlockingV2Stub(channel)
            .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
    try {
      new Example(stub).run(arguments);
    } catch (StatusException error) {
      System.out.println(Problem.of(error));
      System.exit(1);
    } finally {
      channel.shutdownNow();
    }
  }

  private void run(String[] arguments) throws Exception {
    GenerationTask created = create(Imagen4Params.newBuilder().setPrompt("a lighthouse at dawn").build());
    System.out.println("created " + created.getId());
    GenerationTask task = watch(created.getId());
    task.getArtifactsList().forEach(artifact -> System.out.println("result: " + artifact.getUrl()));
    if (task.hasFailure()) {
      System.out.println("the task failed: " + task.getFailure().getMessage());
    }

    Path itself = Path.of(Example.class.getProtectionDomain().getCodeSource().getLocation().toURI());
    UploadedFile file = upload(arguments.length > 0 ? Path.of(arguments[0]) : itself);
    String sha256 = HexFormat.of().formatHex(file.getSha256().toByteArray());
    System.out.printf(
        "uploaded %d bytes with SHA-256 %s: %s%n", file.getSizeBytes(), sha256, file.getDownloadUrl());

    try {
      create(Imagen4Params.newBuilder().setNumImages(9).build());
    } catch (StatusException error) {
      System.out.println("a create with invalid parameters: " + Problem.of(error));
    }
  }

  /** Creates a task. The request_id makes the call safe to retry: the task is never paid for twice. */
  private GenerationTask create(Imagen4Params params) throws StatusException {
    var request =
        CreateTaskRequest.newBuilder()
            .setPromptId("example")
            .setRequestId(UUID.randomUUID().toString())
            .setProviderParams(ProviderParams.newBuilder().setKie(KieParams.newBuilder().setImagen4(params)));
    return stub.withDeadlineAfter(CALL_SECONDS, SECONDS).createTask(request.build()).getTask();
  }

  /** Prints the snapshots of a task and returns the terminal one. Reconnects whenever the stream is lost. */
  private GenerationTask watch(String taskId) throws StatusException, InterruptedException {
    long revision = 0;
    long delay = FIRST_DELAY_MS;
    boolean lost = false;
    while (true) {
      var request = WatchTaskRequest.newBuilder().setTaskId(taskId).setAfterRevision(revision).build();
      BlockingClientCall<?, WatchTaskResponse> call = stub.watchTask(request);
      try {
        while (true) {
          GenerationTask task = next(call);
          if (lost) {
            System.out.println("reconnected");
            lost = false;
          }
          if (task.getRevision() > revision) { // otherwise it is a heartbeat
            System.out.printf("revision %d: %s %s%n", task.getRevision(), task.getStatus(), task.getStage());
            revision = task.getRevision();
            delay = FIRST_DELAY_MS;
          }
          if (task.getStatus() == TaskStatus.TASK_STATUS_SUCCESS
              || task.getStatus() == TaskStatus.TASK_STATUS_FAILED) {
            return task;
          }
        }
      } catch (StatusException error) {
        Problem problem = Problem.of(error);
        if (!problem.canReconnect()) {
          throw error;
        }
        lost = true;
        System.out.printf(
            "the stream was lost (%s: %s), reconnecting after revision %d%n",
            problem.code, problem.message, revision);
        Thread.sleep(problem.retryAfterMs + ThreadLocalRandom.current().nextLong(delay / 2, delay));
        delay = Math.min(2 * delay, MAX_DELAY_MS);
      } finally {
        call.cancel("this stream is not read any more", null);
      }
    }
  }

  /** Returns the next message of a stream. Throws if the stream ends or is silent for three heartbeats. */
  private static GenerationTask next(BlockingClientCall<?, WatchTaskResponse> call)
      throws StatusException, InterruptedException {
    try {
      WatchTaskResponse response = call.read(SILENCE_MS, MILLISECONDS);
      if (response == null) {
        throw Status.UNKNOWN.withDescription("the stream ended before the task did").asException();
      }
      return response.getTask();
    } catch (TimeoutException silence) {
      String message = "no message for " + SILENCE_MS / 1e3 + " s";
      throw Status.UNKNOWN.withDescription(message).asException();
    }
  }

  /** Uploads a file. The server checks its size and SHA-256. */
  private UploadedFile upload(Path path) throws Exception {
    MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
    try (InputStream content = new DigestInputStream(Files.newInputStream(path), sha256)) {
      content.transferTo(OutputStream.nullOutputStream());
    }
    var first =
        UploadMetadata.newBuilder()
            .setFileName(path.getFileName().toString())
            .setSizeBytes(Files.size(path))
            .setSha256(ByteString.copyFrom(sha256.digest()));
    BlockingClientCall<UploadFileRequest, UploadFileResponse> call =
        stub.withDeadlineAfter(UPLOAD_SECONDS, SECONDS).uploadFile();
    try (InputStream content = Files.newInputStream(path)) {
      call.write(UploadFileRequest.newBuilder().setMetadata(first).build());
      byte[] chunk;
      while ((chunk = content.readNBytes(CHUNK_BYTES)).length > 0) {
        call.write(UploadFileRequest.newBuilder().setChunk(ByteString.copyFrom(chunk)).build());
      }
      call.halfClose();
      return call.read().getFile();
    }
  }

  private static String env(String name, String fallback) {
    return System.getenv().getOrDefault(name, fallback);
  }

  /**
   * A failed call, with the details from google.rpc.Status.
   *
   * @param reason of ErrorReason; empty if the error does not come from the service
   * @param retryAfterMs 0 if the service does not say when to retry
   */
  private record Problem(
      Status.Code code, String message, String reason, List<FieldViolation> violations, long retryAfterMs) {

    static Problem of(StatusException error) {
      String reason = "";
      List<FieldViolation> violations = List.of();
      long retryAfterMs = 0;
      try {
        for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
          if (detail.is(ErrorInfo.class)) {
            ErrorInfo info = detail.unpack(ErrorInfo.class);
            reason = info.getDomain().equals(DOMAIN) ? info.getReason() : "";
          } else if (detail.is(BadRequest.class)) {
            violations = detail.unpack(BadRequest.class).getFieldViolationsList();
          } else if (detail.is(RetryInfo.class)) {
            Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
            retryAfterMs = SECONDS.toMillis(delay.getSeconds()) + delay.getNanos() / 1_000_000;
          }
        }
      } catch (InvalidProtocolBufferException malformed) {
        System.out.println("details that cannot be parsed are ignored: " + malformed.getMessage());
      }
      Status status = error.getStatus();
      return new Problem(status.getCode(), status.getDescription(), reason, violations, retryAfterMs);
    }

    /** Returns whether a new stream may succeed where this one failed. Without a reason the stream was lost. */
    boolean canReconnect() {
      return switch (code) {
        case UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED -> false;
        case UNAVAILABLE -> true;
        default -> reason.isEmpty() || reason.equals("RATE_LIMITED");
      };
    }

    @Override
    public String toString() {
      StringBuilder text = new StringBuilder(code + " " + reason + ": " + message);
      for (FieldViolation violation : violations) {
        text.append("\n  " + violation.getField() + ": " + violation.getDescription());
      }
      if (retryAfterMs > 0) {
        text.append("\n  retry in " + retryAfterMs / 1e3 + " s");
      }
      return text.toString();
    }
  }
}
