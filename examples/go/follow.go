package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	pb "generation-example/generation/v1"
)

// follow prints the changes of all tasks. A file remembers the token of each message that was handled, so that the next
// run continues there. It reconnects whenever the stream is lost.
func follow(ctx context.Context, client pb.GenerationServiceClient, path string) error {
	token, err := readToken(path)
	if err != nil {
		return err
	}
	delay := firstDelay
	lost := false
	for {
		streamCtx, stop := context.WithCancel(ctx)
		open := func(ctx context.Context) (grpc.ServerStreamingClient[pb.WatchTasksResponse], error) {
			return client.WatchTasks(ctx, &pb.WatchTasksRequest{ResumeToken: token})
		}
		var unsaved error
		err := readStream(streamCtx, open, func(response *pb.WatchTasksResponse) {
			if unsaved != nil {
				return
			}
			if lost {
				fmt.Println("reconnected")
				lost = false
			}
			if response.GetTask() != nil {
				delay = firstDelay
			}
			show(response)
			token = response.ResumeToken
			if unsaved = writeToken(path, token); unsaved != nil {
				stop()
			}
		})
		stop()
		if unsaved != nil {
			return unsaved
		}
		problem := read(err)
		if problem.reason == "RESUME_TOKEN_EXPIRED" && token != "" {
			fmt.Println("the resume token has expired: starting over with all tasks")
			token = ""
			continue
		}
		if ctx.Err() != nil || !problem.canReconnect() {
			return err
		}
		lost = true
		fmt.Printf("the stream was lost (%s: %s), reconnecting\n", problem.code, problem.message)
		if err := pause(ctx, problem, &delay); err != nil {
			return err
		}
	}
}

// show handles a message. What it does may happen again if the program dies before the token is written.
func show(response *pb.WatchTasksResponse) {
	switch event := response.Event.(type) {
	case *pb.WatchTasksResponse_Task:
		fmt.Printf("task %s revision %d: %s\n", event.Task.Id, event.Task.Revision, event.Task.Status)
	case *pb.WatchTasksResponse_Bookmark:
		if event.Bookmark.InitialDone {
			fmt.Println("up to date")
		}
	}
}

// readToken returns the token in the file, or "" if there is no file, to start with all tasks.
func readToken(path string) (string, error) {
	token, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(token), err
}

// writeToken replaces the file atomically: a reader finds the old token or the new one.
func writeToken(path, token string) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".token-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // it is gone if the rename succeeds
	_, err = file.WriteString(token)
	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
