"""What every part of the pipeline stands on: files, processes, ranks and object stores."""
