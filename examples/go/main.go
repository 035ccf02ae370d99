// A client of the generation service in Go. It creates a task, watches it until it ends, uploads a file, and reads the
// details of an error:
//
//	ADDRESS=127.0.0.1:50051 TOKEN=... build/example [FILE]
//
// Or it follows the changes of all tasks, and remembers in a file where it stopped:
//
//	ADDRESS=127.0.0.1:50051 TOKEN=... build/example follow FILE
package main

//go:generate buf generate ../../protos

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "generation-example/generation/v1"
)

const (
	domain        = "generation.v1"
	callTimeout   = 30 * time.Second // CreateTask waits up to 10 s for the provider
	uploadTimeout = 5 * time.Minute
	chunkBytes    = 1 << 20
	firstDelay    = 100 * time.Millisecond
	maxDelay      = 5 * time.Second
)

// serviceConfig lets gRPC retry calls. That is safe for every method: CreateTask has a request_id.
const serviceConfig = `{"methodConfig": [{
	"name": [{"service": "generation.v1.GenerationService"}],
	"retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "5s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE"]}
}]}`

var errEnded = errors.New("the stream ended too early")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Println(describe(err))
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	// For TLS: credentials.NewTLS(nil) instead of insecure.NewCredentials().
	connection, err := grpc.NewClient(cmp.Or(os.Getenv("ADDRESS"), "127.0.0.1:50051"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewGenerationServiceClient(connection)
	if token := os.Getenv("TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}

	if len(os.Args) == 3 && os.Args[1] == "follow" {
		return follow(ctx, client, os.Args[2])
	}
	task, err := create(ctx, client, &pb.Imagen4Params{Prompt: "a lighthouse at dawn"})
	if err != nil {
		return err
	}
	fmt.Println("created", task.Id)
	if task, err = watch(ctx, client, task.Id); err != nil {
		return err
	}
	for _, artifact := range task.Artifacts {
		fmt.Println("result:", artifact.Url)
	}
	if task.Failure != nil {
		fmt.Println("the task failed:", task.Failure.Message)
	}

	file, err := upload(ctx, client)
	if err != nil {
		return err
	}
	fmt.Printf("uploaded %d bytes with SHA-256 %x: %s\n", file.SizeBytes, file.Sha256, file.DownloadUrl)

	_, err = create(ctx, client, &pb.Imagen4Params{NumImages: 9})
	fmt.Println("a create with invalid parameters:", describe(err))
	return nil
}

// create stores a task. The request_id makes it safe to retry: the task is never paid for twice.
func create(
	ctx context.Context, client pb.GenerationServiceClient, params *pb.Imagen4Params,
) (*pb.GenerationTask, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	kie := &pb.KieParams{Model: &pb.KieParams_Imagen4{Imagen4: params}}
	response, err := client.CreateTask(ctx, &pb.CreateTaskRequest{
		PromptId:       "example",
		RequestId:      rand.Text(),
		ProviderParams: &pb.ProviderParams{Provider: &pb.ProviderParams_Kie{Kie: kie}},
	})
	return response.GetTask(), err
}

// watch prints the snapshots of a task and returns the terminal one. It reconnects whenever the stream is lost.
func watch(ctx context.Context, client pb.GenerationServiceClient, taskID string) (*pb.GenerationTask, error) {
	last := &pb.GenerationTask{}
	delay := firstDelay
	lost := false
	for {
		request := &pb.WatchTaskRequest{TaskId: taskID, AfterRevision: last.Revision}
		open := func(ctx context.Context) (grpc.ServerStreamingClient[pb.WatchTaskResponse], error) {
			return client.WatchTask(ctx, request)
		}
		err := readStream(ctx, open, func(response *pb.WatchTaskResponse) {
			if lost {
				fmt.Println("reconnected")
				lost = false
			}
			task := response.Task
			if task.Revision > last.Revision { // otherwise it is a heartbeat
				fmt.Printf("revision %d: %s %s\n", task.Revision, task.Status, task.Stage)
				delay = firstDelay
			}
			last = task
		})
		if last.Status == pb.TaskStatus_TASK_STATUS_SUCCESS || last.Status == pb.TaskStatus_TASK_STATUS_FAILED {
			return last, nil
		}
		problem := read(err)
		if ctx.Err() != nil || !problem.canReconnect() {
			return nil, err
		}
		lost = true
		fmt.Printf("the stream was lost (%s: %s), reconnecting after revision %d\n",
			problem.code, problem.message, last.Revision)
		if err := pause(ctx, problem, &delay); err != nil {
			return nil, err
		}
	}
}

// pause waits before the next attempt: as long as the service asks for, plus a growing delay with jitter.
func pause(ctx context.Context, problem problem, delay *time.Duration) error {
	wait := problem.retryAfter + *delay/2 + mathrand.N(*delay/2)
	*delay = min(2**delay, maxDelay)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
		return nil
	}
}

// readStream calls handle for each message of one stream, until the stream ends or is silent for three heartbeats.
func readStream[Message any](
	ctx context.Context, open func(context.Context) (grpc.ServerStreamingClient[Message], error), handle func(*Message),
) error {
	limit := silenceLimit()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(limit, func() { cancel(fmt.Errorf("no message for %s", limit)) })
	defer silence.Stop()
	stream, err := open(ctx)
	if err != nil {
		return err
	}
	for {
		message, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errEnded
		case context.Cause(ctx) != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
		silence.Stop() // handling a message may take its time
		handle(message)
		silence.Reset(limit)
	}
}

// silenceLimit returns three times the server's WATCH_HEARTBEAT_SECONDS.
func silenceLimit() time.Duration {
	seconds, err := strconv.ParseFloat(os.Getenv("HEARTBEAT_SECONDS"), 64)
	if err != nil {
		seconds = 20
	}
	return time.Duration(3 * seconds * float64(time.Second))
}

// upload sends the file named on the command line, by default this program. The server checks its size and SHA-256.
func upload(ctx context.Context, client pb.GenerationServiceClient) (*pb.UploadedFile, error) {
	ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
	defer cancel()
	path, err := os.Executable()
	if len(os.Args) > 1 {
		path, err = os.Args[1], nil
	}
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, file)
	if err != nil {
		return nil, err
	}
	if _, err = file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}

	stream, err := client.UploadFile(ctx)
	if err != nil {
		return nil, err
	}
	first := &pb.UploadMetadata{FileName: filepath.Base(path), SizeBytes: proto.Int64(size), Sha256: hash.Sum(nil)}
	err = stream.Send(&pb.UploadFileRequest{Payload: &pb.UploadFileRequest_Metadata{Metadata: first}})
	for err == nil {
		chunk := make([]byte, chunkBytes)
		var count int
		if count, err = file.Read(chunk); err == nil {
			payload := &pb.UploadFileRequest_Chunk{Chunk: chunk[:count]}
			err = stream.Send(&pb.UploadFileRequest{Payload: payload})
		}
	}
	if !errors.Is(err, io.EOF) {
		return nil, err
	}
	// EOF means that the whole file is sent, or that the server has ended the call. In both cases its response is read here.
	response, err := stream.CloseAndRecv()
	return response.GetFile(), err
}

// problem is a failed call, with the details from google.rpc.Status.
type problem struct {
	code       codes.Code
	message    string
	reason     string // of ErrorReason; empty if the error does not come from the service
	violations []*errdetails.BadRequest_FieldViolation
	retryAfter time.Duration // zero if the service does not say when to retry
}

func read(err error) problem {
	converted := status.Convert(err)
	result := problem{code: converted.Code(), message: converted.Message()}
	for _, detail := range converted.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == domain {
				result.reason = detail.Reason
			}
		case *errdetails.BadRequest:
			result.violations = detail.FieldViolations
		case *errdetails.RetryInfo:
			result.retryAfter = detail.RetryDelay.AsDuration()
		}
	}
	return result
}

// canReconnect returns whether a new stream may succeed where this one failed. Without a reason the stream was lost.
func (p problem) canReconnect() bool {
	switch p.code {
	case codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
		return false
	case codes.Unavailable:
		return true
	}
	return p.reason == "" || p.reason == "RATE_LIMITED"
}

func describe(err error) string {
	problem := read(err)
	text := fmt.Sprintf("%s %s: %s", problem.code, problem.reason, problem.message)
	for _, violation := range problem.violations {
		text += fmt.Sprintf("\n  %s: %s", violation.Field, violation.Description)
	}
	if problem.retryAfter > 0 {
		text += fmt.Sprintf("\n  retry in %s", problem.retryAfter)
	}
	return text
}
